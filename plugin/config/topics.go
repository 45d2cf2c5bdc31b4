package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxTopics is how many gated filters there may be: each is tried for every
	// publish on a topic that is not gated.
	MaxTopics = 16
	// maxTopicBytes is the longest filter or topic template.
	maxTopicBytes = 1024
)

// filters reads the gated filters.
func (d *document) filters(key string, byDefault ...string) []string {
	v, set := d.lookup(key)
	if !set {
		return byDefault
	}
	list, ok := v.([]any)
	if !ok {
		d.problem(key, "is %s; write a list of topic filters, for example %q", kindOf(v), byDefault)
		return byDefault
	}
	if len(list) == 0 || len(list) > MaxTopics {
		d.problem(key, "has %d topic filters; give 1 to %d, for example %q", len(list), MaxTopics, byDefault)
		return byDefault
	}
	var filters []string
	for _, v := range list {
		filter, ok := v.(string)
		if !ok {
			d.problem(key, "has %s in the list; write topic filters in quotes, for example %q", kindOf(v), byDefault)
			continue
		}
		if err := checkFilter(filter); err != nil {
			d.problem(key, "%s %v", quote(filter), err)
			continue
		}
		other := slices.IndexFunc(filters, func(f string) bool { return overlap(f, filter) })
		switch {
		case other >= 0 && filters[other] == filter:
			d.problem(key, "%s is given twice; remove one", quote(filter))
		case other >= 0:
			d.problem(key, "%s and %s can match the same topic with different device ids; change one", quote(filters[other]), quote(filter))
		default:
			filters = append(filters, filter)
		}
	}
	return filters
}

// deviceTopic reads the template of a topic of each device.
func (d *document) deviceTopic(key, byDefault string, optional bool) string {
	example := byDefault
	if example == "" {
		example = "device/{device_id}/rejected"
	}
	s, ok := d.text(key, example)
	if !ok {
		return byDefault
	}
	if s == "" && optional {
		return ""
	}
	if err := checkDeviceTopic(s); err != nil {
		d.problem(key, "%s %v", quote(s), err)
		return byDefault
	}
	return s
}

// checkFilter says what makes filter unfit for the gate, to be read after it.
func checkFilter(filter string) error {
	if err := checkTopic(filter); err != nil {
		return err
	}
	if strings.Contains(filter, DeviceID) {
		return fmt.Errorf(`has %s, which is for topics; write "+" for the device id here`, DeviceID)
	}
	ids := 0
	for level := range strings.SplitSeq(filter, "/") {
		switch {
		case level == "+":
			ids++
		case strings.Contains(level, "+"):
			return errors.New(`has "+" inside a level; "+" must be a whole level, as in "device/+/data"`)
		case strings.Contains(level, "#"):
			return errors.New(`has "#"; write the levels out, as in "device/+/data"`)
		}
	}
	if ids != 1 {
		return fmt.Errorf(`has %d "+" levels; exactly one, the device id, is needed, as in "device/+/data"`, ids)
	}
	return nil
}

// checkDeviceTopic says what makes topic unfit as a topic of each device, to be
// read after it.
func checkDeviceTopic(topic string) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	ids := 0
	for level := range strings.SplitSeq(topic, "/") {
		switch {
		case level == DeviceID:
			ids++
		case strings.ContainsAny(level, "+#"):
			return fmt.Errorf("has a wildcard; write %s for the device id and the other levels out", DeviceID)
		case strings.ContainsAny(level, "{}"):
			return fmt.Errorf("has braces in %s; the only placeholder is %s, and it is a whole level", quote(level), DeviceID)
		}
	}
	if ids != 1 {
		return fmt.Errorf("has %s %d times; exactly one level must be it, as in %q", DeviceID, ids, "device/{device_id}/response")
	}
	return nil
}

// checkTopic checks what holds for filters and topics alike.
func checkTopic(topic string) error {
	switch {
	case topic == "":
		return errors.New(`is empty; give a topic of which one level is the device id`)
	case len(topic) > maxTopicBytes:
		return fmt.Errorf("is longer than %d bytes; use a shorter topic", maxTopicBytes)
	case !utf8.ValidString(topic) || strings.ContainsFunc(topic, unicode.IsControl):
		return errors.New("has control characters or invalid UTF-8; use printable text")
	case topic[0] == '$':
		return errors.New(`begins with "$", which is the broker's own; use another topic`)
	case slices.Contains(strings.Split(topic, "/"), ""):
		return errors.New(`has an empty level; remove the "/" at an end, or one of two in a row`)
	}
	return nil
}

// overlap tells whether one topic can match both of two filters or templates.
// A level "+" or {device_id} is taken to match any text.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	if len(as) != len(bs) {
		return false
	}
	wild := func(level string) bool { return level == "+" || level == DeviceID }
	for i := range as {
		if as[i] != bs[i] && !wild(as[i]) && !wild(bs[i]) {
			return false
		}
	}
	return true
}
