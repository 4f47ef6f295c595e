package e2e

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBadFlagsEndInOneLine(t *testing.T) {
	for _, c := range []struct {
		want string // in the message
		args []string
	}{
		{"resolve", []string{"--resolve", "sometimes"}},
		{"resolv", []string{"--resolv", "eager"}},
		{"run-dir", []string{"--run-dir", ""}},
		{"node-id", []string{"--node-id", ""}},
		{"public-ip", []string{"--public-ip", "192.0.2.300"}},
		{"device", []string{"--device", "a/b"}},
		{"bridge", []string{"--bridge", "longer-than-15-bytes"}},
		{"etcd-endpoints", []string{"--etcd-endpoints", "not a url"}},
		{"lease-ttl", []string{"--lease-ttl", "soon"}},
		{"lease-ttl", []string{"--lease-ttl", "-1s"}},
		{"log-level", []string{"--log-level", "loud"}},
		{"metrics-address", []string{"--metrics-address", "nowhere"}},
		{"stray", []string{"stray"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		dir := t.TempDir()
		args := append([]string{"--run-dir", dir}, c.args...)
		out, err := exec.CommandContext(ctx, filepath.Join(binDir, "overlayd"), args...).CombinedOutput()
		cancel()
		text := strings.TrimSuffix(string(out), "\n")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || strings.Contains(text, "\n") || !strings.Contains(text, c.want) {
			t.Errorf("%q: %v, says %q; want exit status 2 and one line that names %s", c.args, err, text, c.want)
		}
	}
}
