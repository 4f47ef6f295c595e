// Command image packs the programs of a folder into a container image, without
// Docker: one OCI archive that holds an image for each platform.
//
//	image -from bin/image -o bin/image/vxlan-cni.tar -name localhost/vxlan-cni:dev
//
// The folder has one folder of programs a platform, linux-amd64 and so on. All that is
// not in it follows from what the programs say about themselves, so that the same
// programs always make the same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := pack(ctx, args); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		return 1
	}
	return 0
}

func pack(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("image", flag.ContinueOnError)
	from := set.String("from", "bin/image", "`folder` with a folder of programs for each platform")
	archive := set.String("o", "", "`file` of the OCI archive; the software bills go beside it")
	ref := set.String("name", "localhost/vxlan-cni:dev", "`name` of the image")
	push := set.Bool("push", false, "send the image to the registry of its name too, with the credentials of `docker login`")
	if err := set.Parse(args); err != nil {
		return err
	}
	tag, err := name.NewTag(*ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("-name %q: %w", *ref, err)
	}
	index, bills, err := buildIndex(*from)
	if err != nil {
		return err
	}
	if *archive != "" {
		if err := writeArchive(*archive, index, *ref); err != nil {
			return err
		}
		if err := writeBills(*archive, bills); err != nil {
			return err
		}
	}
	if *push {
		if err := send(ctx, tag, index); err != nil {
			return err
		}
	}
	return tell(index, *ref, *archive)
}

// send uploads the image of every platform.
func send(ctx context.Context, tag name.Tag, index v1.ImageIndex) error {
	err := remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return fmt.Errorf("push %s: %w", tag, err)
	}
	return nil
}

// tell prints what was made.
func tell(index v1.ImageIndex, ref, archive string) error {
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s@%s\n", ref, digest)
	if archive == "" {
		return nil
	}
	info, err := os.Stat(archive)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.1f MB\n", archive, float64(info.Size())/1e6)
	return nil
}
