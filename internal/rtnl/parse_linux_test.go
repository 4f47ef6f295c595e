package rtnl

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// message is one netlink message, padded.
func message(kind, flags uint16, seq uint32, body []byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body)+3)
	binary.NativeEndian.PutUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, body...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// refusal is the body of an NLMSG_ERROR with words.
func refusal(errno unix.Errno, words string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
	b = append(b, make([]byte, unix.NLMSG_HDRLEN)...) // the request's header
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(words)+1))
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSGERR_ATTR_MSG)
	return append(append(b, words...), 0)
}

func TestEachMessage(t *testing.T) {
	one, two := message(5, 6, 7, []byte("abc")), message(8, 9, 10, nil)
	for name, test := range map[string]struct {
		in   []byte
		seqs []uint32
		err  error
	}{
		"nothing":             {},
		"one":                 {one, []uint32{7}, nil},
		"two":                 {slices.Concat(one, two), []uint32{7, 10}, nil},
		"without padding":     {one[:unix.NLMSG_HDRLEN+3], []uint32{7}, nil},
		"cut in the body":     {slices.Concat(two, one[:unix.NLMSG_HDRLEN+2]), []uint32{10}, errShort},
		"cut in the header":   {slices.Concat(two, one[:unix.NLMSG_HDRLEN-1]), []uint32{10}, nil}, // padding of the last
		"shorter than itself": {slices.Concat([]byte{15, 0, 0, 0}, one[4:]), nil, errShort},
	} {
		var seqs []uint32
		err := eachMessage(test.in, func(h header, _ []byte) { seqs = append(seqs, h.seq) })
		if !slices.Equal(seqs, test.seqs) || !errors.Is(err, test.err) {
			t.Errorf("%s: messages %v, error %v; want %v, %v", name, seqs, err, test.seqs, test.err)
		}
	}
}

func TestParseError(t *testing.T) {
	with := header{flags: unix.NLM_F_ACK_TLVS}
	for name, test := range map[string]struct {
		h    header
		body []byte
		want string
	}{
		"success":           {with, make([]byte, 20), ""},
		"number":            {header{}, refusal(unix.EEXIST, "words")[:20], "file exists"},
		"number and words":  {with, refusal(unix.EEXIST, "Device is busy."), "file exists (Device is busy)"},
		"words not claimed": {header{}, refusal(unix.EEXIST, "words"), "file exists"},
		"words cut short":   {with, refusal(unix.EEXIST, "words")[:27], "file exists"},
		"header cut short":  {with, refusal(unix.EEXIST, "words")[:12], "file exists"},
		"cut short":         {with, []byte{1, 2, 3}, "netlink message cut short"},
	} {
		err := parseError(test.h, test.body)
		if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if err := parseError(with, refusal(unix.EPERM, "x")); !errors.Is(err, unix.EPERM) {
		t.Errorf("%v is not EPERM", err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(slices.Concat(
		message(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 1, refusal(unix.EEXIST, "Device is busy.")),
		message(unix.RTM_NEWLINK, unix.NLM_F_MULTI, 2, make([]byte, 32)),
		message(unix.NLMSG_DONE, unix.NLM_F_MULTI, 2, []byte{0, 0, 0, 0})))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		err := eachMessage(b, func(h header, body []byte) {
			total += unix.NLMSG_HDRLEN + len(body)
			if err := parseError(h, body); err != nil && strings.ContainsRune(err.Error(), 0) {
				t.Errorf("words with a zero: %q", err)
			}
			_ = doneError(body)
		})
		if total > len(b) || err != nil && !errors.Is(err, errShort) {
			t.Errorf("%d bytes hold messages of %d: %v", len(b), total, err)
		}
	})
}
