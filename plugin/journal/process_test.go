package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mosquitto-bouncer/plugin/testkit"

	"golang.org/x/sys/unix"
)

// children are what the test's own program does instead of testing, in a process of its own.
var children = map[string]func(dir string){
	"append": childAppend,
	"hold":   childHold,
	"limit":  childLimit,
}

func child(t *testing.T, name, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+name, "JOURNAL_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

func childOptions(dir string) Options {
	return Options{
		Dir:          dir,
		MaxBytes:     1 << 30,
		SegmentBytes: 64 << 10,
		Sync:         10 * time.Millisecond,
		Keep:         100 * 365 * 24 * time.Hour,
		Log:          slog.New(slog.DiscardHandler),
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// childAppend numbers its messages through, across its lives, and writes the number of each that is stored to its
// standard output. It settles every second one.
func childAppend(dir string) {
	next := 0
	j, err := Open(childOptions(dir), func(_ Position, a *Accepted, _ Outcome) { next = max(next, numberOf(a)+1) })
	if err != nil {
		fatal(err)
	}
	for {
		pos, err := j.Append(message(next))
		if err != nil {
			fatal(err)
		}
		if _, err := os.Stdout.Write(binary.LittleEndian.AppendUint64(nil, uint64(next))); err != nil {
			fatal(err)
		}
		if next%2 == 0 {
			j.Done(pos, Delivered)
		}
		next++
	}
}

func numberOf(a *Accepted) int {
	n, err := strconv.Atoi(string(a.MessageID[:]))
	if err != nil {
		panic(err)
	}
	return n
}

// A process is killed while it appends, again and again: every message that it acknowledged is there, once, as it was.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(5, 6))
	acknowledged, torn := -1, 0
	for round := range rounds {
		cmd := child(t, "append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		if _, err := r.Peek(8); err != nil {
			t.Fatal(err)
		}
		delay := time.Duration(random.IntN(10_000)) * time.Microsecond
		kill := time.AfterFunc(delay, func() { _ = cmd.Process.Kill() })
		for {
			var b [8]byte
			if _, err := io.ReadFull(r, b[:]); err != nil {
				break
			}
			acknowledged = int(binary.LittleEndian.Uint64(b[:]))
		}
		kill.Stop()
		_ = cmd.Wait()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
			t.Fatalf("round %d: the child ended by itself: %v", round, cmd.ProcessState)
		}

		next, pending, whole := 0, uint64(0), -1
		found := map[int]bool{}
		j, err := Open(childOptions(dir), func(_ Position, a *Accepted, o Outcome) {
			n := numberOf(a)
			next = max(next, n+1)
			if o != Pending && n%2 != 0 {
				t.Fatalf("round %d: message %d is %v", round, n, o)
			}
			if o == Settled {
				found[n] = true
				return
			}
			if n <= whole || string(a.Payload) != string(message(n).Payload) {
				t.Fatalf("round %d: message %d after %d, or with another payload", round, n, whole)
			}
			whole = n
			found[n] = true
			if o == Pending {
				pending++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != next {
			t.Fatalf("round %d: %d messages up to number %d", round, len(found), next)
		}
		if next <= acknowledged {
			t.Fatalf("round %d: %d messages, %d were acknowledged", round, next, acknowledged+1)
		}
		st := j.Stats()
		// The kernel may end the write of a killed process between two pages: such a record is torn, and not acknowledged.
		if st.TornBytes > 0 {
			torn++
		}
		if st.Damaged+st.Missing+st.Unreadable+st.DamagedOutcomes != 0 ||
			st.Accepted != uint64(next) || st.Pending != pending || st.Accepted != st.Delivered+st.Pending {
			t.Fatalf("round %d: %+v", round, st)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d messages, %d kills, %d torn records", acknowledged+1, rounds, torn)
}

func childHold(dir string) {
	if _, err := Open(childOptions(dir), nothing); err != nil {
		fatal(err)
	}
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestSecondProcess(t *testing.T) {
	f := newFixture(t)
	cmd := child(t, "hold", f.Dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, _, err = f.tryOpen()
	want := fmt.Sprintf("journal: in use: process %d has the journal in %q open; two brokers need two directories", cmd.Process.Pid, f.Dir)
	if !errors.Is(err, ErrLocked) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	j, _ := f.open() // its end freed it
	if _, _, err := f.tryOpen(); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	f.close(j)
	f.open()
}

func TestReadOnlyDirectory(t *testing.T) {
	f, all := built(t, 3)
	if err := os.Chmod(f.Dir, 0o500); err != nil {
		t.Fatal(err)
	}
	// Root may write anywhere, so one thread becomes somebody else to the file system; it ends with the goroutine.
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			for path := f.Dir; path != "/"; path = path[:max(1, strings.LastIndexByte(path, '/'))] {
				if path != f.Dir {
					_ = os.Chmod(path, 0o755)
				}
			}
			if err := errors.Join(os.Chown(f.Dir, 65534, 65534), os.Chown(f.path(lockName), 65534, 65534)); err != nil {
				result <- err
				return
			}
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				result <- err
				return
			}
		}
		_ = os.Remove(f.path(lockName)) // fails
		_, err := Open(f.Options, nothing)
		result <- err
	}()
	err := <-result
	if err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("%v", err)
	}
	if err := os.Chmod(f.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, got := f.open()
	wantRecovered(t, got, all)
}

// The directory's file system is mounted read-only.
func TestReadOnlyFileSystem(t *testing.T) {
	f := newFixture(t)
	mountTmpfs(t, f, "size=1m")
	j, _ := f.open()
	want := appendAll(t, j, 0, 3)
	f.close(j)
	if err := unix.Mount("", f.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.tryOpen()
	text := "journal: open " + f.path(lockName) + ": read-only file system; the broker's user must be able to write in the directory of the journal"
	if !errors.Is(err, unix.EROFS) || err.Error() != text {
		t.Errorf("%v, want %s", err, text)
	}
	if err := unix.Mount("", f.Dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	_, got := f.open()
	wantRecovered(t, got, want)
}

func mountTmpfs(t *testing.T, f *fixture, options string) {
	t.Helper()
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", f.Dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs a file system of its own, which only root can mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(f.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// The disk is full: nothing is acknowledged that is not stored; when there is room again, it continues by itself.
func TestDiskFull(t *testing.T) {
	f := newFixture(t)
	f.SegmentBytes = 32 << 10
	mountTmpfs(t, f, "size=320k")
	j, _ := f.open()
	ballast := f.path("ballast")
	write(t, ballast, make([]byte, 140<<10))
	var want []recovered
	fill := func() {
		t.Helper()
		for i := len(want); ; i++ {
			pos, err := j.Append(message(i))
			if err != nil {
				if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				break
			}
			want = append(want, recovered{pos, *message(i), Pending})
		}
	}
	fill()
	full := len(want)
	for _, r := range want[:10] {
		j.Done(r.pos, Delivered) // cannot be written either
	}
	if err := j.Stats().Err; !errors.Is(err, ErrFull) {
		t.Errorf("state %v", err)
	}
	testkit.Eventually(t, "log lines", func() bool {
		return strings.Contains(f.logged.String(), "the journal cannot store messages; they are refused")
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "room", func() bool {
		pos, err := j.Append(message(len(want)))
		if err == nil {
			want = append(want, recovered{pos, *message(len(want)), Pending})
		}
		return err == nil
	})
	if err := j.Stats().Err; err != nil {
		t.Errorf("state %v", err)
	}
	testkit.Eventually(t, "the next segment, and outcomes", func() bool {
		info, err := os.Stat(f.path(outcomesName(1)))
		return j.next.Load() != nil && err == nil && info.Size() > headerSize
	})
	fill()
	if len(want) <= full+50 {
		t.Errorf("%d messages, %d after there was room again", full, len(want)-full)
	}
	for i := range want[:10] {
		want[i].outcome = Delivered
	}
	_ = j.Close()
	if err := unix.Mount("", f.Dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	wantRecovered(t, got, want)
	if st := j.Stats(); st.Damaged+st.TornBytes+st.Missing+st.Unreadable+st.DamagedOutcomes != 0 {
		t.Errorf("stats %+v", st)
	}
}

// childLimit may write a few records, and a part of one.
func childLimit(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	o := childOptions(dir)
	o.SegmentBytes = 1 << 20
	j, err := Open(o, nothing)
	if err != nil {
		fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		fatal(err)
	}
	least := limit
	least.Cur = logStart + 5001
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &least); err != nil {
		fatal(err)
	}
	stored := 0
	for {
		if _, err = j.Append(message(stored)); err != nil {
			break
		}
		stored++
	}
	info, statErr := os.Stat(dir + "/" + logName(1))
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.EFBIG) || statErr != nil || info.Size() != j.active.end {
		fatal(fmt.Errorf("%w; %d bytes, %w", err, info.Size(), statErr))
	}
	if _, err := j.Append(message(stored)); !errors.Is(err, ErrFull) {
		fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		fatal(err)
	}
	for range 10 {
		if _, err := j.Append(message(stored)); err != nil {
			fatal(err)
		}
		stored++
	}
	fmt.Print(stored)
	os.Exit(0) // without Close
}

// A write that is cut short leaves no part of a record behind.
func TestPartialWrite(t *testing.T) {
	f := newFixture(t)
	out, err := child(t, "limit", f.Dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	j, got := f.open()
	if fmt.Sprint(len(got)) != string(out) || len(got) < 20 {
		t.Errorf("recovered %d messages, stored were %s", len(got), out)
	}
	for i, r := range got {
		if numberOf(&r.message) != i {
			t.Errorf("message %d is %d", i, numberOf(&r.message))
		}
	}
	if st := j.Stats(); st.Damaged+st.TornBytes != 0 {
		t.Errorf("stats %+v", st)
	}
}
