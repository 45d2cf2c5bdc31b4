package fleet

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The least version of nats-server: from it on `sync_interval: always` is cheap enough to be used.
const leastMajor, leastMinor = 2, 15

// HeaderRoom is what a message takes in NATS besides its payload, at most, in bytes: the id and the attributes.
const HeaderRoom = 4 << 10

// partitionsKey is the stream's metadata in which the number of partitions is.
const partitionsKey = "bouncer-partitions"

// Codes of JetStream's errors.
const (
	codeReplicas    = 10074 // replicas > 1 on a server without a cluster
	codeOverlap     = 10065 // of subjects
	codeNotFound    = 10037 // message
	codeTooLarge    = 10054 // message, for the stream
	codeFull        = 10077 // the stream
	codeNoJetStream = 10076
	codeNoAccount   = 10039
)

// A Mismatch is something in NATS that is not as it must be, and that an operator is to change. It says what to do.
type Mismatch struct{ text string }

func (m *Mismatch) Error() string { return m.text }

func mismatch(format string, args ...any) error { return &Mismatch{fmt.Sprintf(format, args...)} }

// wanted is the stream as it is made.
func (o *Options) wanted() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        StreamName(o.Prefix),
		Description: "accepted messages of mosquitto-bouncer",
		Subjects:    []string{Subjects(o.Prefix)},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Replicas:    o.Replicas,
		Discard:     jetstream.DiscardNew,
		Duplicates:  o.Dedup,
		MaxBytes:    o.MaxBytes,
		Metadata:    map[string]string{partitionsKey: strconv.Itoa(o.Partitions)},
	}
}

// fits says what is wrong with the stream that is there. Every finding has its cure.
func (o *Options) fits(c *jetstream.StreamConfig) error {
	name, edit := c.Name, "nats stream edit "+c.Name
	replace := fmt.Sprintf("that cannot be changed: let its consumers read what is left and remove it with nats stream rm %s, or choose another fleet.prefix", name)
	switch {
	case c.Retention != jetstream.LimitsPolicy:
		return mismatch("the stream %s has the retention %s, which forgets message ids when NATS restarts; it must be limits, and %s",
			name, strings.ToLower(c.Retention.String()), replace)
	case c.Storage != jetstream.FileStorage:
		return mismatch("the stream %s keeps messages in memory; it must keep them in files, and %s", name, replace)
	case c.Mirror != nil || len(c.Sources) > 0 || c.Sealed || c.NoAck || c.SubjectTransform != nil:
		return mismatch("the stream %s is a mirror, has sources or a subject transform, is sealed, or does not acknowledge; %s", name, replace)
	case c.PersistMode != jetstream.DefaultPersistMode:
		return mismatch("the stream %s acknowledges messages before they are on disk (persist_mode); %s", name, replace)
	case len(c.Subjects) != 1 || c.Subjects[0] != Subjects(o.Prefix):
		return mismatch("the stream %s has the subjects %q; run: %s --subjects='%s'", name, c.Subjects, edit, Subjects(o.Prefix))
	case c.Replicas < o.Replicas:
		return mismatch("the stream %s has %d replicas, fleet.replicas is %d; run: %s --replicas=%d, or change the setting", name, c.Replicas, o.Replicas, edit, o.Replicas)
	case c.Discard != jetstream.DiscardNew:
		return mismatch("the stream %s drops old messages when it is full; run: %s --discard=new", name, edit)
	case c.Duplicates < o.Dedup:
		return mismatch("the stream %s recognises repeated messages for %v, fleet.dedup is %v; run: %s --dupe-window=%v, or change the setting", name, c.Duplicates, o.Dedup, edit, o.Dedup)
	case c.MaxAge != 0:
		return mismatch("the stream %s drops messages after %v, read or not; run: %s --max-age=-1", name, c.MaxAge, edit)
	case c.MaxMsgsPerSubject > 0:
		return mismatch("the stream %s keeps only %d messages of a device; run: %s --max-msgs-per-subject=-1", name, c.MaxMsgsPerSubject, edit)
	case c.MaxMsgSize > 0 && int(c.MaxMsgSize) < o.largest():
		return mismatch("the stream %s takes messages of %d bytes at most, publish.max_bytes needs %d; run: %s --max-msg-size=-1", name, c.MaxMsgSize, o.largest(), edit)
	case c.Metadata[partitionsKey] != strconv.Itoa(o.Partitions):
		if has := c.Metadata[partitionsKey]; has != "" {
			return mismatch("the stream %s has %.20q partitions, fleet.partitions is %d; all gateways of a fleet must have the same number, so change the setting", name, has, o.Partitions)
		}
		return mismatch("the stream %s does not say how many partitions it has; run: %s --metadata=%s=%d", name, edit, partitionsKey, o.Partitions)
	}
	return nil
}

// largest is the largest message that is to go to NATS, in bytes.
func (o *Options) largest() int { return o.MaxMessage + HeaderRoom }

// serverFits says what is wrong with the server that is connected.
func (o *Options) serverFits(version string, maxPayload int64) error {
	if !newEnough(version) {
		return mismatch("the NATS server is version %.20q; a fleet needs %d.%d or later, so upgrade it", version, leastMajor, leastMinor)
	}
	if maxPayload < int64(o.largest()) {
		return mismatch("the NATS server takes messages of %d bytes at most, publish.max_bytes (%d) needs %d; raise max_payload in nats-server.conf, or lower publish.max_bytes",
			maxPayload, o.MaxMessage, o.largest())
	}
	return nil
}

// newEnough reports whether a version such as "2.15.2" or "2.15.0-RC.1" will do.
func newEnough(version string) bool {
	major, rest, ok := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, err := strconv.Atoi(major)
	y, err2 := strconv.Atoi(minor)
	if !ok || err != nil || err2 != nil {
		return false
	}
	return x > leastMajor || x == leastMajor && y >= leastMinor
}

// checkStream makes the stream if there is none, and checks the one that there is.
func (f *Fleet) checkStream(ctx context.Context, js jetstream.JetStream) error {
	name := StreamName(f.o.Prefix)
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, f.o.wanted())
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another gateway was quicker
			stream, err = js.Stream(ctx, name)
		} else if err == nil {
			f.log.Info("made the stream in NATS", "stream", name, "replicas", f.o.Replicas, "partitions", f.o.Partitions)
		}
	}
	if err != nil {
		return f.explain(err)
	}
	info := stream.CachedInfo()
	if !info.Created.Equal(f.made) {
		f.made = info.Created
		f.searched.forget()
	}
	f.stored.Store(info.State.Bytes)
	f.room.Store(uint64(max(info.Config.MaxBytes, 0)))
	return f.o.fits(&info.Config)
}

// explain turns those errors of JetStream into a Mismatch that an operator has to correct.
func (f *Fleet) explain(err error) error {
	api, is := errors.AsType[*jetstream.APIError](err)
	if !is {
		var js jetstream.JetStreamError
		if !errors.As(err, &js) || js.APIError() == nil {
			return err
		}
		api = js.APIError()
	}
	switch api.ErrorCode {
	case codeNoJetStream:
		// nats.go says so also where nothing answers, so it may end by itself.
		return errors.New("JetStream is off in the NATS server, or not ready yet; it needs a jetstream block in nats-server.conf")
	case codeNoAccount:
		return mismatch("the NATS account of these credentials has no JetStream; enable it for the account")
	case codeReplicas:
		return mismatch("the NATS server has no cluster, so it cannot keep %d replicas; make a cluster of 3, or set fleet.replicas to 1 and lose messages with that server", f.o.Replicas)
	case codeOverlap:
		return mismatch("another stream of the account has subjects below %s.up; choose another fleet.prefix, or remove that stream", f.o.Prefix)
	}
	return err
}

// code returns the code of JetStream's error, 0 if it is none.
func code(err error) int {
	if api, is := errors.AsType[*jetstream.APIError](err); is {
		return int(api.ErrorCode)
	}
	var js jetstream.JetStreamError
	if errors.As(err, &js) && js.APIError() != nil {
		return int(js.APIError().ErrorCode)
	}
	return 0
}

// reason puts an error of NATS into words.
func reason(err error, timeout time.Duration) error {
	switch c := code(err); {
	case c == codeFull:
		return errors.New("the stream is full: let consumers remove what they have read, with nats stream purge --seq, or raise its max_bytes")
	case c != 0:
		return fmt.Errorf("NATS refuses (error %d): %w", c, err)
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return errors.New("NATS has no leader for the stream, or the stream is gone")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("no answer of NATS within %v", timeout)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrDisconnected), errors.Is(err, context.Canceled):
		return errors.New("the connection to NATS was lost")
	}
	return fmt.Errorf("NATS: %w", err)
}
