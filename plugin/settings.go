package plugin

import (
	"fmt"
	"strings"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/plugin/audit"
	"mosquitto-bouncer/plugin/config"
	"mosquitto-bouncer/plugin/forward/webhook"
	"mosquitto-bouncer/plugin/gate"
	"mosquitto-bouncer/plugin/registry"
)

// topicConfig returns the topics of a configuration.
func topicConfig(c *config.Config) gate.TopicConfig {
	filter := func(topic string) string { return strings.Replace(topic, config.DeviceID, "+", 1) }
	topics := gate.TopicConfig{
		Gated: c.Publish.Topics, Response: filter(c.Response.Topic), Command: filter(c.Command.Topic), Rejected: filter(c.Rejected.Topic),
	}
	if c.HTTP.Listen != "" { // otherwise there are no commands
		topics.Answers = answerFilter(c)
	}
	return topics
}

// answerFilter is the filter of the topics on which devices answer commands.
func answerFilter(c *config.Config) string {
	return strings.Replace(c.Command.ResultTopic(), config.DeviceID, "+", 1)
}

// gateSettings returns those settings of both configurations that the gate takes over at a reload.
func gateSettings(c *config.Config, b *brokerSettings) gate.Settings {
	s := gate.Settings{
		MaxBytes:             c.Publish.MaxBytes,
		Rate:                 rate.Inf,
		MaxBadSignatures:     c.Publish.MaxBadSignatures,
		DenyUnknown:          c.ACL.UnknownCertificates == config.UnknownDeny,
		KnownCertificates:    c.ACL.Certificates,
		NamesAreCertificates: b.namesAreCertificates(),
		AsksSessions:         b.asksSessions(),
	}
	if c.Publish.Rate > 0 {
		s.Rate, s.Burst = rate.Limit(c.Publish.Rate), c.Publish.Burst
	}
	return s
}

func auditOptions(c *config.Config) audit.Options {
	return audit.Options{File: c.Audit.File, MaxBytes: c.Audit.MaxBytes, Keep: c.Audit.Keep}
}

// registryKey returns the key of the devices' secrets; nil for none.
func registryKey(c *config.Config) (*registry.Key, error) {
	if c.Registry.Key == nil {
		return nil, nil
	}
	return registry.NewKey(c.Registry.Key)
}

// backendCredentials returns the credentials of requests to the backend.
func backendCredentials(c *config.Config) (*webhook.Credentials, error) {
	credentials, err := webhook.NewCredentials(c.Backend.BearerToken, c.Backend.SigningSecret, c.Backend.TLS)
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	return credentials, nil
}
