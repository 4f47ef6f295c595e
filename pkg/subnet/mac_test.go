package subnet

import (
	"encoding/json"
	"fmt"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for text, words := range map[string]string{
		"":                        `MAC "": want six`,
		"0e:5d:60:c1:c5":          `want six`,
		"0e:5d:60:c1:c5:2e:00:00": `want six`, // EUI-64
		"zz:5d:60:c1:c5:2e":       `want six`,
		"00:00:00:00:00:00":       `all zero`,
		"01:00:5e:00:00:01":       `group`,
		"ff:ff:ff:ff:ff:ff":       `group`,
	} {
		if m, err := ParseMAC(text); err == nil {
			t.Errorf("ParseMAC(%q) = %s, want an error", text, m)
		} else {
			wantWords(t, text, err, words)
		}
	}
	for _, text := range []string{"0e:5d:60:c1:c5:2e", "0E-5D-60-C1-C5-2E", "0e5d.60c1.c52e"} {
		if m, err := ParseMAC(text); err != nil || m.String() != "0e:5d:60:c1:c5:2e" {
			t.Errorf("ParseMAC(%q) = %s, %v", text, m, err)
		}
	}
}

func TestVTEPMAC(t *testing.T) {
	// The value is on the wire and in peers' tables: it must never change.
	if got := VTEPMAC("node-1", true).String(); got != "7a:51:b4:ef:30:56" {
		t.Errorf("MAC of node-1: %s, want the same as ever", got)
	}
	seen := map[MAC]string{}
	for i := range 1000 {
		for _, is4 := range []bool{true, false} {
			who := fmt.Sprint("node-", i, is4)
			m := VTEPMAC(fmt.Sprint("node-", i), is4)
			if m[0]&3 != 2 {
				t.Errorf("%s: %s is not locally administered unicast", who, m)
			}
			if before, dup := seen[m]; dup {
				t.Errorf("%s and %s: both %s", before, who, m)
			}
			seen[m] = who
		}
	}
}

func TestMACText(t *testing.T) {
	m := VTEPMAC("node-1", true)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var again MAC
	if err := json.Unmarshal(data, &again); err != nil || again != m {
		t.Errorf("%s read as %s, %v", data, again, err)
	}
	if err := json.Unmarshal([]byte(`"01:00:00:00:00:00"`), &again); err == nil {
		t.Error("a group address: no error")
	}
}
