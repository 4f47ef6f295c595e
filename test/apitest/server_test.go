package apitest

import (
	"net/http"
	"testing"
)

type named struct {
	Metadata struct{ Name, ResourceVersion string }
}

func TestRestartKeepsDataAndAddressWipeLosesData(t *testing.T) {
	s := New(t)
	url := s.URL()
	body := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "a"}}
	s.Do(t, http.MethodPost, "/api/v1/nodes", body, nil)
	s.Stop()
	s.Stop() // twice is fine
	s.Start(t)
	var got named
	if code := s.Do(t, http.MethodGet, "/api/v1/nodes/a", nil, &got); code != http.StatusOK || got.Metadata.Name != "a" || s.URL() != url {
		t.Errorf("after a restart: %d %+v at %s, want the Node at %s", code, got, s.URL(), url)
	}
	s.Wipe(t)
	if code := s.Do(t, http.MethodGet, "/api/v1/nodes/a", nil, nil); code != http.StatusNotFound {
		t.Errorf("after a wipe: %d, want %d", code, http.StatusNotFound)
	}
}
