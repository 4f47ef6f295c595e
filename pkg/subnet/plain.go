package subnet

// A plain reads records exactly as EncodeRecord and flannel write them: no space,
// the keys in their order, strings of plain ASCII. It gives up at anything else,
// and then encoding/json reads the record. It is there for the first look at a
// large network: 10,000 records take encoding/json 50 ms and more.
type plain struct {
	data []byte
	ok   bool // nothing unexpected so far
}

// readPlain returns the record, with its backends' data decoded, and whether
// data was as expected.
func readPlain(data []byte) (r storedJSON, ok bool) {
	p := &plain{data, true}
	p.want(`{"PublicIP":`)
	r.PublicIP = p.address()
	p.want(`,"PublicIPv6":`)
	r.PublicIPv6 = p.address()
	if p.skip(`,"BackendType":`) {
		r.BackendType = p.text()
	}
	if p.skip(`,"BackendData":`) {
		r.data4 = p.backend()
	}
	if p.skip(`,"BackendV6Data":`) {
		r.data6 = p.backend()
	}
	if p.skip(`,"Node":`) {
		r.Node = p.text()
	}
	if p.skip(`,"Schema":`) {
		n := p.number()
		r.Schema = &n
	}
	if p.skip(`,"MTU":`) {
		r.MTU = p.number()
	}
	if p.skip(`,"Since":`) {
		r.Since = p.text()
	}
	p.want(`}`)
	return r, p.ok && len(p.data) == 0 && (r.BackendType == TypeVXLAN || r.BackendType == TypeHostGW)
}

// skip reads a literal if it is what comes next.
func (p *plain) skip(literal string) bool {
	if len(p.data) < len(literal) || string(p.data[:len(literal)]) != literal {
		return false
	}
	p.data = p.data[len(literal):]
	return true
}

func (p *plain) want(literal string) { p.ok = p.skip(literal) && p.ok }

// text reads a string.
func (p *plain) text() string {
	p.want(`"`)
	for i, c := range p.data {
		switch {
		case c == '"':
			s := string(p.data[:i])
			p.data = p.data[i+1:]
			return s
		case c == '\\' || c < ' ' || c > '~':
			p.ok = false
			return ""
		}
	}
	p.ok = false
	return ""
}

// address reads a string or null.
func (p *plain) address() *string {
	if p.skip("null") {
		return nil
	}
	s := p.text()
	return &s
}

// number reads a whole number of few digits.
func (p *plain) number() (n int) {
	digits := 0
	for digits < len(p.data) && p.data[digits] >= '0' && p.data[digits] <= '9' && digits < 10 {
		n = 10*n + int(p.data[digits]-'0')
		digits++
	}
	if digits == 0 || digits > 9 || (p.data[0] == '0' && digits > 1) {
		p.ok = false
	}
	p.data = p.data[digits:]
	return n
}

// backend reads a VXLAN endpoint or null.
func (p *plain) backend() *backendData {
	if p.skip("null") {
		return nil
	}
	p.want(`{"VNI":`)
	d := &backendData{VNI: uint32(p.number())}
	p.want(`,"VtepMAC":`)
	d.VtepMAC = p.text()
	p.want(`}`)
	return d
}
