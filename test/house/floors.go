package main

// A floor is where a package stands. It may import the floors below its own, and no package of its own floor, but for the
// ground floor, whose packages may import each other.
type floor int

const (
	ground  floor = iota // plumbing: knows nothing of devices, messages or MQTT
	leaf                 // one noun each: a store, a format, a bounded table
	room                 // one purpose each: deciding, delivering, sending, answering
	root                 // package plugin, which connects the rooms
	bridge               // cgo: the broker's callbacks in C and Go
	outside              // programs and tests: no floor imports them
)

func (f floor) String() string {
	return [...]string{"ground floor", "leaf", "room", "root", "bridge", "outside"}[f]
}

// floors is the table of packages, below the module. A package that is in no row fails TestFloors.
var floors = map[string]floor{
	"plugin/ascii":      ground,
	"plugin/backendurl": ground,
	"plugin/brokerlog":  ground,
	"plugin/cloudevent": ground,
	"plugin/commandkey": ground,
	"plugin/crash":      ground,
	"plugin/deviceid":   ground,
	"plugin/docpart":    ground,
	"plugin/fleetstate": ground,
	"plugin/linefile":   ground,
	"plugin/loop":       ground,
	"plugin/mailbox":    ground,
	"plugin/mqtt":       ground,
	"plugin/metrics":    ground,
	"plugin/publickey":  ground,
	"plugin/secret":     ground,
	"plugin/smalldisk":  ground,
	"plugin/sqlite":     ground,
	"plugin/textfile":   ground,
	"plugin/version":    ground,
	"plugin/writable":   ground,

	"plugin/audit":        leaf,
	"plugin/brokerconf":   leaf,
	"plugin/command":      leaf,
	"plugin/config":       leaf,
	"plugin/deadletter":   leaf,
	"plugin/envelope":     leaf,
	"plugin/fleet":        leaf,
	"plugin/former":       leaf,
	"plugin/httpd/api":    leaf,
	"plugin/journal":      leaf,
	"plugin/order":        leaf,
	"plugin/pki":          leaf,
	"plugin/registry":     leaf,
	"plugin/replay":       leaf,
	"plugin/retained":     leaf,
	"plugin/rotation":     leaf,
	"plugin/sampler":      leaf,
	"plugin/standing":     leaf,
	"plugin/subscription": leaf,
	"plugin/suspension":   leaf,

	"plugin/downlink":          room,
	"plugin/forward":           room,
	"plugin/forward/jetstream": room,
	"plugin/forward/webhook":   room,
	"plugin/gate":              room,
	"plugin/httpd":             room,
	"plugin/outbox":            room,

	"device/go":            outside,
	"device/go/agent":      outside,
	"device/go/crosscheck": outside,
	"device/vectors":       outside,

	"plugin/forward/forwardtest": outside,
	"plugin/testkit":             outside,

	"plugin": root,
	"cgo":    bridge,
}

// allowed are the imports that go against the rule, each with its reason. One that is not needed any more fails TestFloors.
var allowed = map[[2]string]string{
	{"plugin/forward/jetstream", "plugin/forward"}: "a sink implements the interface of the package that uses it",
	{"plugin/forward/webhook", "plugin/forward"}:   "a sink implements the interface of the package that uses it",
	{"plugin/outbox", "plugin/forward"}:            "the forwarder delivers what the outbox keeps; an interface between them would have one implementation: see outbox.go",
}

// Limits of size. A file that is over its limit has its reason in overSize.
const (
	rootLines     = 300 // of a file of package plugin
	fileLines     = 500 // of every other file
	gatewayFields = 15
)

// overSize are the files that are over their limit, and why.
var overSize = map[string]string{}
