package gate

import (
	"fmt"
	"strings"
	"testing"

	"mosquitto-bouncer/plugin/docpart"
)

// documented are the reasons of refusals in the order of their checks; Internal can come at any time.
func documented() []Reason {
	all := []Reason{Forbidden, ForeignClient}
	for r := NoTLSIdentity; r <= Overloaded; r++ {
		all = append(all, r)
	}
	return append(all, Internal)
}

// TestReasonsInDocuments: the documents have the table of reasons as the source has it.
func TestReasonsInDocuments(t *testing.T) {
	var summary, table, list, enum strings.Builder
	summary.WriteString("| reason | |\n| --- | --- |\n")
	table.WriteString("| reason | what it means | what to do |\n| --- | --- | --- |\n")
	enum.WriteString("propertyNames:\n  enum:\n")
	seen := map[Reason]bool{Accepted: true, Redelivered: true}
	for _, r := range documented() {
		row := reasons[r]
		for _, text := range []string{row.name, row.summary, row.meaning, row.remedy} {
			if text == "" || strings.HasSuffix(text, ".") || strings.ContainsAny(text, "|\n") || strings.Count(text, "`")%2 != 0 {
				t.Errorf("%s: %q", row.name, text)
			}
		}
		fmt.Fprintf(&summary, "| `%s` | %s |\n", row.name, row.summary)
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", row.name, row.meaning, row.remedy)
		fmt.Fprintf(&list, "- `%s`: %s.\n", row.name, row.summary)
		fmt.Fprintf(&enum, "    - %s\n", row.name)
		seen[r] = true
	}
	for r := range ReasonCount {
		if !seen[r] {
			t.Errorf("%s is not among the documented reasons", r)
		}
	}
	docpart.Hold(t, "reasons", map[string]string{
		"summary": summary.String(), "table": table.String(), "list": list.String(), "enum": enum.String(),
	}, "../../README.md", "../../docs/troubleshooting.md", "../../docs/mosquitto_bouncer.md", "../../docs/openapi.yaml")
}

func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range ReasonCount {
		name := r.String()
		if name == "" || seen[name] {
			t.Errorf("reason %d has the name %q", r, name)
		}
		seen[name] = true
	}
	var zero Reason
	if zero == Accepted || Reason(200).String() != "internal" {
		t.Error("the zero value must be a refusal, an unknown one internal")
	}
}
