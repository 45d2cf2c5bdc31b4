// Package fleet has the integration tests of a gateway with NATS JetStream behind it: three real nats-server processes, and real
// brokers with the real plugin. It is a module of its own, so that nats-server is not among the plugin's dependencies.
package fleet
