package device

// A Verdict is what a CommandMemory says of a command.
type Verdict string

// The verdicts.
const (
	CommandNew      Verdict = "new"
	CommandRepeated Verdict = "repeated" // do not execute it; publish its answer again
	CommandExpired  Verdict = "expired"
)

// Err returns an *Error with the reason repeated or expired, nil for a command that is new.
func (v Verdict) Err() error {
	switch v {
	case CommandNew:
		return nil
	case CommandRepeated:
		return errRepeated
	}
	return errExpired
}

// DefaultCommands is how many commands are remembered unless set otherwise.
const DefaultCommands = 256

// A CommandMemory tells which commands are new, so that none is executed twice, whatever the clock says: a table of the
// commands that were taken and a floor, below which everything is taken for expired. Not safe for concurrent use.
type CommandMemory struct {
	capacity int
	floor    int64
	table    map[[16]byte]int64 // by when each expires
}

// NewCommandMemory returns an empty memory with room for so many commands, at least one; 0: DefaultCommands.
func NewCommandMemory(capacity int) *CommandMemory {
	if capacity == 0 {
		capacity = DefaultCommands
	}
	return &CommandMemory{capacity: max(capacity, 1), table: map[[16]byte]int64{}}
}

// Take says what a verified command is, and remembers one that is new. An id that is no UUID is expired.
func (m *CommandMemory) Take(id string, expires int64) Verdict {
	key, ok := parseUUID(id)
	if !ok {
		return CommandExpired
	}
	verdict, _, _ := m.take(key, expires)
	return verdict
}

// look says what take would.
func (m *CommandMemory) look(key [16]byte, expires int64) Verdict {
	if _, ok := m.table[key]; ok {
		return CommandRepeated
	}
	if expires <= m.floor {
		return CommandExpired
	}
	return CommandNew
}

// take returns the command that had to leave, too.
func (m *CommandMemory) take(key [16]byte, expires int64) (verdict Verdict, left [16]byte, someLeft bool) {
	if verdict = m.look(key, expires); verdict != CommandNew {
		return verdict, left, false
	}
	m.table[key] = expires
	if len(m.table) <= m.capacity {
		return verdict, left, false
	}
	left, lowest := key, expires
	for other, e := range m.table {
		// Of several with the same expiry any may leave: the floor is that expiry then, and none of them is taken again.
		if e < lowest || e == lowest && string(other[:]) < string(left[:]) {
			left, lowest = other, e
		}
	}
	delete(m.table, left)
	m.floor = max(m.floor, lowest)
	return verdict, left, true
}
