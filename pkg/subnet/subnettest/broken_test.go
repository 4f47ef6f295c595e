package subnettest

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vxlan-cni/vxlan-cni/pkg/subnet"
)

// A broken Manager does one thing wrong that the suite must notice.
type broken struct {
	subnet.Manager
	store *Store

	acquire func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) // nil: as it should be
	run     func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error            // nil: as it should be

	mu   sync.Mutex
	node string // of the last Acquire
}

func (b *broken) Acquire(ctx context.Context, want subnet.Request) (subnet.Lease, error) {
	b.mu.Lock()
	b.node = want.Node
	b.mu.Unlock()
	if b.acquire != nil {
		return b.acquire(ctx, b, want)
	}
	return b.Manager.Acquire(ctx, want)
}

func (b *broken) Run(ctx context.Context, fn func(subnet.Snapshot)) error {
	if b.run != nil {
		return b.run(ctx, b, fn)
	}
	return b.Manager.Run(ctx, fn)
}

// through makes a Run that tells something else than it should.
func through(change func(subnet.Snapshot) subnet.Snapshot) func(context.Context, *broken, func(subnet.Snapshot)) error {
	return func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
		return b.Manager.Run(ctx, func(s subnet.Snapshot) { fn(change(s)) })
	}
}

// defects are faults that stores really have had (flannel's among them), each
// with the case that must fail.
func defects() map[string]struct {
	fails string
	make  func() broken
} {
	type defect = struct {
		fails string
		make  func() broken
	}
	return map[string]defect{
		"forgets": {"same_subnet_after_a_restart", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				b.store.Expire(want.Node)
				return b.Manager.Acquire(ctx, want)
			}}
		}},
		"known by address": {"same_subnet_at_another_address,_defect_8", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				for _, r := range b.store.Records() {
					if r.Lease.VTEPs[0].Underlay == want.VTEPs[0].Underlay {
						b.store.Delete(r.Key)
						want.Want = r.Lease.Subnets
					}
				}
				return b.Manager.Acquire(ctx, want)
			}}
		}},
		"ignores preferences": {"preferred_subnet", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				want.Want = nil
				return b.Manager.Acquire(ctx, want)
			}}
		}},
		"overwrites": {"foreign_lease_is_never_overwritten,_defect_9", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				for _, s := range want.Want {
					b.store.Delete(subnet.Key([]netip.Prefix{s}))
				}
				return b.Manager.Acquire(ctx, want)
			}}
		}},
		"gives up when full late": {"exhaustion", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				l, err := b.Manager.Acquire(ctx, want)
				if err != nil {
					<-ctx.Done()
					err = ctx.Err()
				}
				return l, err
			}}
		}},
		"fails in an outage": {"outage", func() broken {
			return broken{acquire: func(ctx context.Context, b *broken, want subnet.Request) (subnet.Lease, error) {
				short, cancel := context.WithTimeout(ctx, 1)
				defer cancel()
				if _, err := b.Config(short); err != nil {
					return subnet.Lease{}, os.ErrDeadlineExceeded
				}
				return b.Manager.Acquire(ctx, want)
			}}
		}},
		"compares subnets only": {"peers_come,_change_and_go", func() broken {
			seen := map[netip.Prefix]subnet.Lease{}
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				for i, p := range s.Peers {
					if old, ok := seen[p.Subnets[0]]; ok {
						s.Peers[i] = old
					}
					seen[p.Subnets[0]] = s.Peers[i]
				}
				return s
			})}
		}},
		"never removes": {"peers_come,_change_and_go", func() broken {
			var most subnet.Snapshot
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				if len(s.Peers) < len(most.Peers) {
					s.Peers = most.Peers
				}
				most = s
				return s
			})}
		}},
		"first snapshot only": {"newest_snapshot_wins", func() broken {
			var once sync.Once
			return broken{run: func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
				return b.Manager.Run(ctx, func(s subnet.Snapshot) { once.Do(func() { fn(s) }) })
			}}
		}},
		"goes back": {"new_endpoint_and_MTU", func() broken {
			revision := int64(1000)
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				revision--
				s.Revision = revision
				return s
			})}
		}},
		"concurrent": {"peers_come,_change_and_go", func() broken {
			return broken{run: func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
				return b.Manager.Run(ctx, func(s subnet.Snapshot) {
					var wg sync.WaitGroup
					for range 200 {
						wg.Go(func() { fn(s) })
					}
					wg.Wait()
				})
			}}
		}},
		"believes": {"hostile_records", func() broken {
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				for _, i := range s.Ignored {
					s.Peers = append(s.Peers, subnet.Lease{Node: i.Key})
				}
				return s
			})}
		}},
		"ignores in silence": {"hostile_records", func() broken {
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				s.Ignored = nil
				return s
			})}
		}},
		"peer of itself": {"peers_come,_change_and_go", func() broken {
			return broken{run: through(func(s subnet.Snapshot) subnet.Snapshot {
				s.Peers = append(slices.Clone(s.Peers), s.Own)
				return s
			})}
		}},
		"error at the end": {"end_of_the_context", func() broken {
			return broken{run: func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
				_ = b.Manager.Run(ctx, fn)
				return ctx.Err()
			}}
		}},
		"gives its lease back at the end": {"end_of_the_context", func() broken {
			return broken{run: func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
				err := b.Manager.Run(ctx, fn)
				b.mu.Lock()
				defer b.mu.Unlock()
				b.store.Expire(b.node)
				return err
			}}
		}},
		"loss is fatal": {"lost_lease,_defect_10", func() broken {
			return broken{run: func(ctx context.Context, b *broken, fn func(subnet.Snapshot)) error {
				b.mu.Lock()
				node := b.node
				b.mu.Unlock()
				return (&manager{store: b.store, want: subnet.Request{Node: node}}).Run(ctx, fn)
			}}
		}},
	}
}

// brokenEnv names the defect that a child process is to have.
const brokenEnv = "SUBNETTEST_BROKEN"

// TestConformanceNotices runs each defect's case in a child process, which must
// fail: the only way to see a test fail is to be outside.
func TestConformanceNotices(t *testing.T) {
	for name, d := range defects() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBroken$/^"+d.fails+"$", "-test.timeout=3s")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestBroken/"+d.fails) {
				t.Errorf("case %s passes, or is not there: %v\n%s", d.fails, err, out)
			}
		})
	}
}

// TestBroken does nothing unless TestConformanceNotices runs it.
func TestBroken(t *testing.T) {
	d, ok := defects()[os.Getenv(brokenEnv)]
	if !ok {
		return
	}
	Conformance(t, func(t *testing.T, cfg subnet.Config) Fixture {
		s := NewStore(cfg)
		f := fixture(s)
		f.Manager = func(*testing.T) subnet.Manager {
			b := d.make()
			b.Manager, b.store = s.Manager(), s
			return &b
		}
		return f
	})
}
