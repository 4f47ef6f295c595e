// Package install puts the plugins on a node and takes everything off it again.
//
// Programs get to their place by rename: a running one cannot be written to
// (ETXTBSY), and the runtime never sees half of one. Which files were put
// there is noted beside them, by their hashes: what somebody else put there
// under the same name, such as the distribution's portmap, is neither replaced nor
// removed.
package install
