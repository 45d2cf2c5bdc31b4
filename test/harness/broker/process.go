package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds one line of the log, in bytes; the broker itself cuts its lines at 1000.
const maxLine = 1 << 20

// running is what Mosquitto logs when it listens and its signal handlers are in place.
var running = Matches(`mosquitto version \S+ running`)

// crashed matches what the Go runtime and the C library print when they end a process.
var crashed = regexp.MustCompile(`^(panic: |fatal error: |runtime: |SIG[A-Z]+: |free\(\): |malloc\(\): |double free|\*\*\* )`)

// Find returns the path of the mosquitto binary: $MOSQUITTO, the one in PATH, or /usr/sbin/mosquitto, where Debian
// has it and an ordinary user's PATH does not look.
func Find() (string, error) {
	if path := os.Getenv("MOSQUITTO"); path != "" {
		return path, nil
	}
	if path, err := exec.LookPath("mosquitto"); err == nil {
		return path, nil
	}
	const debian = "/usr/sbin/mosquitto"
	if _, err := os.Stat(debian); err != nil {
		return "", errors.New("mosquitto is not installed: run scripts/install-deps run, or name the binary in $MOSQUITTO")
	}
	return debian, nil
}

// Account returns the account that a broker started by root gives its privileges up for, nil when not root: then the
// broker stays who we are.
func Account() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("mosquitto")
	if err != nil {
		return nil, fmt.Errorf("the broker's account: %w; it comes with Debian's package mosquitto", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the broker's account: uid %q: %w", account.Uid, err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the broker's account: gid %q: %w", account.Gid, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// Command says how to run a broker.
type Command struct {
	Binary string   // as Find returns it
	Config string   // mosquitto.conf; it must log to standard error, of level notice at least
	Args   []string // more arguments
	// Credential is who runs it. Starting as the broker's account at once, and not as root for the broker to drop
	// its privileges, keeps the death signal in force, which the kernel cancels whenever a process changes its ids.
	Credential *syscall.Credential
	Log        *Log      // gets every line
	Tee        io.Writer // gets every line too, unless nil
	Env        []string  // added to our environment
}

// Process is one run of the broker as a child process. Safe for concurrent use.
type Process struct {
	log   *Log
	begin int // the log's mark at the start
	pid   int
	done  chan struct{} // closed when it has ended and its output is read

	mu    sync.Mutex
	ended bool // the pid is no longer ours to signal

	exit error // Wait's result; valid after done
}

// Start runs the broker. It does not wait until the broker is ready. The broker is killed when this process ends,
// however it ends.
func (c Command) Start() (*Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	cmd := exec.Command(c.Binary, append([]string{"-c", c.Config}, c.Args...)...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true, // the terminal's Ctrl-C is for us, we decide when the broker stops
		Pdeathsig:  syscall.SIGKILL,
		Credential: c.Credential,
	}
	p := &Process{log: c.Log, begin: c.Log.Mark(), done: make(chan struct{})}

	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			p.log.add(lines.Text())
			if c.Tee != nil {
				fmt.Fprintln(c.Tee, lines.Text())
			}
		}
		_, _ = io.Copy(io.Discard, r) // after an overlong line: the broker must never wait for us
	}()

	// The death signal is sent when the thread that forked ends, not when the process does. So a thread that lives
	// exactly as long as the child.
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		w.Close()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.exit = p.reap(cmd)
		<-read
		close(p.done)
	}()
	if err := <-started; err != nil {
		<-read
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	return p, nil
}

// reap waits for the child without ever leaving its pid, once free for others, in Signal's hands.
func (p *Process) reap(cmd *exec.Cmd) error {
	// The child stays a zombie until Wait, and its pid ours.
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	return cmd.Wait()
}

// Log is where the output goes.
func (p *Process) Log() *Log { return p.log }

// PID is the process id.
func (p *Process) PID() int { return p.pid }

// Done is closed when the broker has ended and all it wrote is in the log.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal. It is an error if the broker has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return fmt.Errorf("%v to the broker: %w", sig, os.ErrProcessDone)
	}
	if err := syscall.Kill(p.pid, sig); err != nil {
		return fmt.Errorf("%v to the broker: %w", sig, err)
	}
	return nil
}

// Ready waits until the broker serves. When the broker ends instead, or ctx does, the error shows the log's end.
func (p *Process) Ready(ctx context.Context) error {
	_, err := p.WaitLog(ctx, p.begin, running)
	return err
}

// WaitLog is Log.Wait, and gives up as well when the broker ends.
func (p *Process) WaitLog(ctx context.Context, from int, m Match) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(p.ending())
		case <-ctx.Done():
		}
	}()
	line, err := p.log.Wait(ctx, from, m)
	if err == nil {
		return line, nil
	}
	if found := p.log.Find(from, m); len(found) > 0 {
		return found[0], nil // written just before it ended
	}
	return "", fmt.Errorf("%w\n%s", err, p.log.tail(p.begin, 15))
}

// ExitError says how a broker ended that should not have.
type ExitError struct {
	// Code is the exit status, -1 after a signal.
	Code int
	text string
}

func (e *ExitError) Error() string { return "the broker ended: " + e.text }

// Ended says how the broker ended, as an *ExitError, whatever its status; nil while it runs.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		return p.ending()
	default:
		return nil
	}
}

// ending is how the broker ended, which it must have.
func (p *Process) ending() *ExitError {
	var exit *exec.ExitError
	switch {
	case p.exit == nil:
		return &ExitError{Code: 0, text: "exit status 0"}
	case errors.As(p.exit, &exit):
		return &ExitError{Code: exit.ExitCode(), text: exit.String()}
	default:
		return &ExitError{Code: -1, text: p.exit.Error()}
	}
}

// Stop sends SIGTERM and waits until the broker has ended, with ctx as the limit: then it is killed. The error says
// that it took too long, that its exit status was not 0, or that its output shows a crash.
func (p *Process) Stop(ctx context.Context) error {
	err := p.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		<-p.done
		return errors.Join(p.ending(), p.crash())
	}
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(
			fmt.Errorf("stopping the broker: %w; killed\n%s", context.Cause(ctx), p.log.tail(p.begin, 15)),
			p.Kill())
	}
	if exit := p.ending(); exit.Code != 0 {
		err = fmt.Errorf("%w\n%s", exit, p.log.tail(p.begin, 15))
	}
	return errors.Join(err, p.crash())
}

// Kill sends SIGKILL and waits until the broker is gone. It is no error if it has gone already.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// crash reports output of the Go runtime or the C library that has no place in a healthy run.
func (p *Process) crash() error {
	lines := p.log.Lines(p.begin)
	for i, line := range lines {
		if crashed.MatchString(line) {
			return fmt.Errorf("the broker's output shows a crash:\n\t%s", strings.Join(lines[i:min(i+20, len(lines))], "\n\t"))
		}
	}
	return nil
}

// CPUTime is the processor time that all threads of the broker, past ones included, have used so far, exact to the
// nanosecond.
func (p *Process) CPUTime() (time.Duration, error) {
	// The CPU-time clock of a process: include/linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
	const cpuclockSched = 2
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^p.pid<<3|cpuclockSched), &used); err != nil {
		return 0, fmt.Errorf("the broker's processor time: %w", err)
	}
	return time.Duration(used.Nano()), nil
}

// ThreadTime is the processor time of the broker's own, single thread, without the plugin's.
func (p *Process) ThreadTime() (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/task/%d/schedstat", p.pid, p.pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("the broker's processor time: %w", err)
	}
	var onCPU int64
	if _, err := fmt.Sscan(string(text), &onCPU); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return time.Duration(onCPU), nil
}

// Memory is the broker's resident memory and its highest value so far, in bytes.
func (p *Process) Memory() (resident, peak int64, err error) {
	path := fmt.Sprintf("/proc/%d/status", p.pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, fmt.Errorf("the broker's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		for name, value := range map[string]*int64{"VmRSS:": &resident, "VmHWM:": &peak} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscan(rest, value); err != nil {
					return 0, 0, fmt.Errorf("%s: %w", path, err)
				}
				*value <<= 10 // from KiB
			}
		}
	}
	if resident == 0 {
		return 0, 0, fmt.Errorf("%s: no VmRSS: the broker has ended", path)
	}
	return resident, peak, nil
}
