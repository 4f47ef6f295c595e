package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A member is one key of a JSON object with its value as written.
type member struct {
	key    string
	value  json.RawMessage
	offset int64 // of the value, in bytes
}

// parseObject reads data as exactly one JSON object; nothing may follow it.
// Errors name the byte offset.
func parseObject(data []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	open, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("byte 0: empty, want a JSON object")
	}
	if err != nil {
		return nil, syntaxError(dec, err)
	}
	if open != json.Delim('{') {
		return nil, fmt.Errorf("byte 0: %s: want a JSON object", quote(string(data)))
	}
	var members []member
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, syntaxError(dec, err)
		}
		m := member{key: key.(string)} // inside an object a token before a value is a string
		if err := dec.Decode(&m.value); err != nil {
			return nil, syntaxError(dec, err)
		}
		m.offset = dec.InputOffset() - int64(len(m.value))
		members = append(members, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, syntaxError(dec, err)
	}
	end := dec.InputOffset()
	if rest := bytes.TrimLeft(data[end:], " \t\r\n"); len(rest) > 0 {
		return nil, fmt.Errorf("byte %d: %s after the end of the JSON object", end, quote(string(rest)))
	}
	return members, nil
}

func syntaxError(dec *json.Decoder, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("byte %d: ends inside a JSON object", dec.InputOffset())
	case errors.As(err, &syntax):
		return fmt.Errorf("byte %d: %w", syntax.Offset, err)
	}
	return fmt.Errorf("byte %d: %w", dec.InputOffset(), err)
}

// A field says where the value of one key goes: a pointer to a pointer that
// stays nil if the key is absent or null.
type field struct {
	key  string
	into any
}

// A keyError is what is wrong with one key's value.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// fill distributes members over fields. Keys match without regard to case, as
// in encoding/json, but none may come twice. An unknown key is an error if
// strict. Prefix is put before the key in errors, which are keyErrors.
func fill(members []member, fields []field, prefix string, strict bool) error {
	seen := make([]bool, len(fields))
	for _, m := range members {
		i := slices.IndexFunc(fields, func(f field) bool { return strings.EqualFold(f.key, m.key) })
		if i < 0 {
			if strict {
				return &keyError{m.key, fmt.Errorf("%s%s: unknown key, want one of %s", prefix, quote(m.key), keys(fields))}
			}
			continue
		}
		f := fields[i]
		if seen[i] {
			return &keyError{m.key, fmt.Errorf("%s%s: given twice, want it once", prefix, f.key)}
		}
		seen[i] = true
		if err := json.Unmarshal(m.value, f.into); err != nil {
			return &keyError{m.key, fmt.Errorf("%s%s %s: want %s", prefix, f.key, cut(string(m.value)), wanted(f.into))}
		}
	}
	return nil
}

func keys(fields []field) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.key
	}
	return strings.Join(names, ", ")
}

// wanted says in words what JSON value goes into a field.
func wanted(into any) string {
	switch into.(type) {
	case **bool:
		return "true or false"
	case **int64:
		return "a whole number"
	case **string:
		return "a string"
	case **[]string:
		return "a list of strings"
	}
	return "an object"
}

// quote quotes foreign text for an error, cut so that a log line stays one.
func quote(s string) string { return strconv.Quote(cut(s)) }

func cut(s string) string {
	const longest = 64
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}
