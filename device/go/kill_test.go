package device

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is also the process that TestKilled kills: one that publishes, signs and finishes messages and takes commands as fast
// as it can, and says what is on the disk.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DEVICE_TEST_STATE"); dir != "" {
		if err := busy(dir); err != nil {
			fmt.Println("error", err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func busy(dir string) error {
	credential, err := Secret(testSecret)
	if err != nil {
		return err
	}
	d, err := Open(Config{
		DeviceID: "sensor_001", Address: "127.0.0.1:1", Credential: credential, Topics: Topics{Data: "data"},
		TLS: &tls.Config{RootCAs: x509.NewCertPool()},
	}, Options{State: dir, Commands: 1_000_000})
	if err != nil {
		return err
	}
	s := d.store
	for n := 0; ; n++ {
		// The texts make the log grow, so that it is written again now and then.
		text := fmt.Sprintf(`"%d %s"`, s.next, strings.Repeat("x", rand.N(20_000)))
		delivery, err := d.Publish(context.Background(), json.RawMessage(text))
		if err != nil {
			return err
		}
		fmt.Println("queued", delivery.Number())
		if n%2 == 0 {
			m := s.queue[rand.N(len(s.queue))]
			r, err := d.sign(m, int64(n))
			if err != nil {
				return err
			}
			if err := s.write(true, r); err != nil {
				return err
			}
			fmt.Println("signed", m.number, r.ID)
		}
		if len(s.queue) > 20 {
			number := s.queue[0].number
			fmt.Println("finishing", number)
			if err := s.write(true, record{Op: opDone, Number: number}); err != nil {
				return err
			}
			fmt.Println("done", number)
		}
		if n%5 == 0 {
			id := formatUUID([16]byte{0: byte(rand.N(256)), 1: byte(n), 2: byte(n >> 8), 6: 0x80, 8: 0x80})
			if err := s.write(true, record{Op: opCommand, ID: id, At: int64(time.Now().Unix())}); err != nil {
				return err
			}
			fmt.Println("command", id)
		}
	}
}

// TestKilled kills a process 50 times at a random moment. What it said was on the disk is there: messages in their order, what
// was signed last, outcomes, and commands.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	queued, finishing, done, signed, commands := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}, map[uint64]string{}, map[string]bool{}
	var size int64
	for round := range 50 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DEVICE_TEST_STATE="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		// After some lines, in the middle of whatever comes next.
		kill := func() { _ = cmd.Process.Kill() }
		timer := time.AfterFunc(20*time.Second, kill)
		lines := bufio.NewScanner(out)
		for n, last := 0, 5+rand.N(60); lines.Scan(); n++ {
			if n == last {
				time.AfterFunc(rand.N(3*time.Millisecond), kill)
			}
			fields := strings.Fields(lines.Text())
			if fields[0] == "error" {
				t.Fatalf("round %d: %s", round, lines.Text())
			}
			if fields[0] == "command" {
				commands[fields[1]] = true
				continue
			}
			var number uint64
			_, err := fmt.Sscan(fields[1], &number)
			must(t, err)
			switch fields[0] {
			case "queued":
				queued[number] = true
			case "signed":
				signed[number] = fields[2]
			case "finishing":
				finishing[number] = true
			case "done":
				done[number] = true
			}
		}
		_ = cmd.Wait() // it was killed
		timer.Stop()

		s, err := openStore(dir, "sensor_001", 1_000_000)
		must(t, err)
		size = max(size, s.log.size)
		found := map[uint64]*message{}
		last := uint64(0)
		for _, m := range s.queue {
			if m.number <= last || !strings.HasPrefix(string(m.payload), fmt.Sprintf(`"%d x`, m.number)) && string(m.payload) != fmt.Sprintf(`"%d "`, m.number) {
				t.Errorf("round %d: message %d after %d: %.20s", round, m.number, last, m.payload)
			}
			last, found[m.number] = m.number, m
		}
		for number := range queued {
			m := found[number]
			switch {
			case m == nil && !finishing[number]:
				t.Errorf("round %d: message %d is lost", round, number)
			case m != nil && done[number]:
				t.Errorf("round %d: message %d is there again", round, number)
			case m != nil && signed[number] != "" && (m.id == "" || !m.uncertain || m.tries < 1):
				t.Errorf("round %d: what was signed of message %d is lost", round, number)
			}
			if m == nil {
				delete(queued, number)
			}
		}
		for id := range commands {
			if key, _ := parseUUID(id); s.commands.look(key, 1<<50) != CommandRepeated {
				t.Errorf("round %d: command %s is forgotten", round, id)
			}
		}
		must(t, s.close())
		if t.Failed() {
			t.FailNow()
		}
	}
	if len(signed) < 50 || len(done) < 50 || len(commands) < 20 {
		t.Errorf("%d signed, %d done, %d commands: too few to find anything", len(signed), len(done), len(commands))
	}
	if size > 4<<20 {
		t.Errorf("the log grew to %d bytes for 21 messages", size)
	}
}
