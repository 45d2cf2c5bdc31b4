//go:build amd64 || arm64

package replay

// prefetch has the processor fetch a bucket into its caches, and does not wait for it.
//
//go:noescape
func prefetch(b *bucket)
