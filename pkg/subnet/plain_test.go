package subnet

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// slowly is decodeRecord without the short way.
func slowly(data []byte) (Lease, error) { return decodeRecord(append([]byte(" "), data...)) }

func TestPlainReadsWhatWeAndFlannelWrite(t *testing.T) {
	l := Lease{
		Node: "node-1.example", Backend: "vxlan", MTU: 1450, Since: time.Unix(1e9, 0).UTC(),
		VTEPs: []VTEP{{addr("192.0.2.7"), MAC{2, 0, 0, 0, 0, 1}, 1}, {addr("2001:db8::7"), MAC{2, 0, 0, 0, 0, 2}, 16777215}},
	}
	ours, err := EncodeRecord(l)
	if err != nil {
		t.Fatal(err)
	}
	l.VTEPs = l.VTEPs[1:]
	six, err := EncodeRecord(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		string(ours), string(six),
		`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`,
		`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2f"}}`,
		`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan"}`, // a reservation
		`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw"}`,
		`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"host-gw","Node":"node-1","Schema":1,"MTU":1500}`,
	} {
		if _, ok := readPlain([]byte(text)); !ok {
			t.Errorf("takes the long way: %s", text)
		}
	}
}

func TestPlainGivesUp(t *testing.T) {
	const good = `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`
	for _, change := range []string{
		"|", "}|}}", `"vxlan"|"udp"`, `"vxlan"|"vx\u006can"`, `1,|01,`, `1,|-1,`, `1,|1.0,`, `1,|12345678901,`, `1,|"1",`, `,"Back| ,"Back`,
		`null|nul`, `2.7"|2.7`, `2.7|2.` + "\x07", `2.7|2.é`, `"VNI"|"vni"`, `}}|},"New":1}`, `}}|}`, `}}|}} `,
	} {
		from, to, _ := strings.Cut(change, "|")
		text := strings.Replace(good, from, to, 1)
		if from == "" {
			text = ""
		}
		if _, ok := readPlain([]byte(text)); ok {
			t.Errorf("takes the short way: %s", text)
		}
	}
}

// FuzzPlain: the short way comes to the same as the long one.
func FuzzPlain(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5d:60:c1:c5:2e"}}`))
	f.Add([]byte(`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":null,"BackendV6Data":{"VNI":16777216,"VtepMAC":"0E-5d"},"Node":"a","Schema":1,"MTU":1450,"Since":"2026-01-31T12:00:00+01:00"}`))
	f.Add([]byte(`{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"host-gw","Node":"a","Schema":1,"MTU":1500}`))
	f.Add([]byte(`{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw","BackendData":{"VNI":1,"VtepMAC":""}}`))
	f.Add([]byte(`{"PublicIP":null,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":4294967296,"VtepMAC":""},"Schema":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, ok := readPlain(data); !ok {
			return
		}
		short, shortErr := decodeRecord(data)
		long, longErr := slowly(data)
		if !reflect.DeepEqual(short, long) || (shortErr == nil) != (longErr == nil) || (shortErr != nil && shortErr.Error() != longErr.Error()) {
			t.Errorf("%s\nshort %+v, %v\nlong  %+v, %v", data, short, shortErr, long, longErr)
		}
	})
}
