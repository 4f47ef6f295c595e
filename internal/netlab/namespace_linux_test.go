package netlab

import (
	"os"
	"strings"
	"testing"
)

func TestNamespaceIsApartAndGoes(t *testing.T) {
	var path string
	t.Run("inside", func(t *testing.T) {
		n := TestNamespace(t)
		path = n.Path()
		out, err := n.Output("ip", "-br", "link")
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 1 || !strings.HasPrefix(lines[0], "lo ") {
			t.Errorf("links of a new namespace:\n%s", out)
		}
		if _, err := n.Output("ip", "link", "set", "nosuch", "up"); err == nil || !strings.Contains(err.Error(), "nosuch") {
			t.Errorf("error of a failed command: %v", err)
		}
		if _, err := NewNamespace(strings.TrimPrefix(n.Name, Prefix())); err == nil {
			t.Error("a name that exists was taken over")
		}
	})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", path, err)
	}
}
