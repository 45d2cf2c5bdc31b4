// Package retained remembers, over restarts, which retained messages of gated topics were verified: of each topic the
// hash of the last. A broker that asks whether it may serve one is answered by that, without the device's secret, which
// may have been rotated since.
//
// It keeps one file, with a line for each change: "+HASH TOPIC", the hash in hexadecimal digits, or "-TOPIC". What a
// crash takes from it is verified by its signature instead.
package retained

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"mosquitto-bouncer/plugin/linefile"
	"mosquitto-bouncer/plugin/loop"
)

// FileName is the name of the file in the state directory.
const FileName = "retained-verified"

// Bounds.
const (
	// MaxTopics is how many topics are remembered. Messages on others are verified each time that they are served.
	MaxTopics = 1 << 17
	// MaxTopic is the longest topic that is remembered, in bytes.
	MaxTopic = 1024
	// writeInterval is how often changes are written.
	writeInterval = 2 * time.Second
	compactBeyond = 1 << 20
	maxWaiting    = 16 << 20 // bytes of lines that the disk does not take
	closeWithin   = 2 * time.Second
)

const header = "mosquitto-bouncer verified retained messages 1\n"

// A Memory is safe for concurrent use. Its lock is held for a few assignments, and never over I/O.
type Memory struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex // guards what follows
	topics  map[string]*message
	changed []string // topics to be written, each once

	loop *loop.Loop

	// The goroutine's.
	file    *linefile.File
	failed  bool   // the log says that it cannot write
	waiting []byte // lines that could not be written yet
}

// message is the last that was verified on a topic.
type message struct {
	sum     [sha256.Size]byte
	gone    bool // forgotten, and not written yet
	written bool // not in changed
}

// Open reads the file at path, which need not exist. wanted reports whether a topic is still to be remembered: it is of a
// registered device. A file that is damaged, or another's, costs no more than the hashes in it.
func Open(path string, wanted func(topic []byte) bool, log *slog.Logger) (*Memory, error) {
	m := &Memory{path: path, log: log, topics: make(map[string]*message)}
	damaged := 0
	var err error
	m.file, err = linefile.Open(path, header, func(text []byte) {
		if topic, sum, ok := parse(text); !ok {
			damaged++
		} else if sum == nil {
			delete(m.topics, string(topic))
		} else if known := m.topics[string(topic)]; known != nil {
			known.sum = [sha256.Size]byte(sum)
		} else if wanted(topic) && len(m.topics) < MaxTopics {
			m.topics[string(topic)] = &message{sum: [sha256.Size]byte(sum), written: true}
		}
	})
	if err != nil {
		return nil, err
	}
	if damaged > 0 {
		log.Warn("the record of verified retained messages is damaged; their signatures are verified instead", "file", path, "lines", damaged)
	}
	m.loop = loop.New(log, "retained messages", m.write)
	m.loop.Start()
	return m, nil
}

// parse takes a line apart; sum is nil where the topic is to be forgotten.
func parse(text []byte) (topic, sum []byte, ok bool) {
	const digits = 2 * sha256.Size
	switch {
	case len(text) < 2:
		return nil, nil, false
	case text[0] == '-':
		return text[1:], nil, true
	case text[0] != '+' || len(text) < digits+3 || text[digits+1] != ' ':
		return nil, nil, false
	}
	sum = make([]byte, sha256.Size)
	if _, err := hex.Decode(sum, text[1:digits+1]); err != nil {
		return nil, nil, false
	}
	return text[digits+2:], sum, true
}

// Note remembers that the message was verified and is retained on the topic, instead of any other.
func (m *Memory) Note(topic, payload []byte) {
	sum := sha256.Sum256(payload)
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.topics[string(topic)]
	if known == nil {
		if len(m.topics) >= MaxTopics || len(topic) > MaxTopic || bytes.IndexByte(topic, '\n') >= 0 {
			return
		}
		known = &message{written: true}
		m.topics[string(topic)] = known
	} else if known.sum == sum && !known.gone {
		return
	}
	known.sum, known.gone = sum, false
	m.change(topic, known)
}

// Verified reports whether the message is the last that was noted on the topic.
func (m *Memory) Verified(topic, payload []byte) bool {
	m.mu.Lock()
	known := m.topics[string(topic)]
	if known == nil || known.gone {
		m.mu.Unlock()
		return false
	}
	want := known.sum
	m.mu.Unlock()
	return sha256.Sum256(payload) == want
}

// Forget forgets what was verified on the topic.
func (m *Memory) Forget(topic []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.topics[string(topic)]; known != nil && !known.gone {
		known.gone = true
		m.change(topic, known)
	}
}

func (m *Memory) change(topic []byte, known *message) {
	if known.written {
		known.written = false
		m.changed = append(m.changed, string(topic))
	}
}

// Len returns how many topics are remembered.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.topics)
}

// Close writes what has changed and ends the goroutine.
func (m *Memory) Close() error {
	if !m.loop.Close(closeWithin) {
		return fmt.Errorf("%s: the disk does not answer", m.path)
	}
	return nil
}

// write writes what has changed; stopping, it also closes the file. It is the loop's round.
func (m *Memory) write(stopping bool) time.Duration {
	if stopping {
		defer func() { _ = m.file.Close() }()
	}
	m.waiting = append(m.waiting, m.takeChanges()...)
	if len(m.waiting) == 0 {
		return writeInterval
	}
	err := m.file.Append(m.waiting)
	if err == nil || len(m.waiting) > maxWaiting {
		m.waiting = nil
	}
	if err == nil && !stopping && m.file.Grown(compactBeyond) {
		err = m.compact()
	}
	if failed := err != nil; failed != m.failed {
		m.failed = failed
		if failed {
			m.log.Warn("the record of verified retained messages cannot be stored; after a restart their signatures are verified again",
				"error", err)
		} else {
			m.log.Info("the record of verified retained messages can be stored again", "file", m.path)
		}
	}
	return writeInterval
}

func (m *Memory) takeChanges() (lines []byte) {
	m.mu.Lock()
	changed := m.changed
	m.changed = nil
	m.mu.Unlock()
	var text []byte
	for _, topic := range changed {
		m.mu.Lock() // for each, so that the broker's thread never waits for many
		known := m.topics[topic]
		known.written = true
		sum, gone := known.sum, known.gone
		if gone {
			delete(m.topics, topic)
		}
		m.mu.Unlock()
		if gone {
			text = append(append(text[:0], '-'), topic...)
		} else {
			text = appendNoted(text[:0], topic, sum[:])
		}
		lines = linefile.AppendLine(lines, text)
	}
	return lines
}

func appendNoted(text []byte, topic string, sum []byte) []byte {
	text = hex.AppendEncode(append(text, '+'), sum)
	return append(append(text, ' '), topic...)
}

// compact rewrites the file, with one line for each topic that counts.
func (m *Memory) compact() error {
	last := make(map[string][]byte)
	err := m.file.Read(func(text []byte) {
		topic, sum, ok := parse(text)
		switch {
		case ok && sum == nil:
			delete(last, string(topic))
		case ok:
			last[string(topic)] = sum
		}
	})
	if err != nil {
		return err
	}
	return m.file.Replace(lines(maps.All(last)))
}

func lines(of iter.Seq2[string, []byte]) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var text []byte
		for topic, sum := range of {
			if text = appendNoted(text[:0], topic, sum); !yield(text) {
				return
			}
		}
	}
}
