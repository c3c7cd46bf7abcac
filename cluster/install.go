package cluster

import (
	"fmt"
	"strings"
	"time"
)

func (c Arm) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil {
		return nil, err
	}
	switch n.State {
	case Discovered:
		return nil, refuse("doppel assign MAC "+n.Name+" first", "%s has no machine", n.Name)
	case Installing:
		return nil, refuse("wait for it, or doppel disarm "+n.Name+" first", "%s is installing %s", n.Name, n.Install.Image)
	}
	if image := s.active(n.Name); image != "" && n.State == Installed {
		return nil, refuse("doppel sync turn "+image+" --to "+s.syncs[image].Pair.Other(n.Name)+" makes the other head the active one first",
			"%s is the active head of %s, which is captured: an install would erase what nothing else has", n.Name, image)
	}
	if c.After != "reboot" && c.After != "poweroff" && c.After != "shell" {
		return nil, refuse("give reboot, poweroff or shell", "%s is not something to do after an install", quoteName(c.After))
	}
	for what, v := range map[string]string{"id": c.Install, "image": c.Image, "digest": c.Digest} {
		if v == "" || v != text(v, maxField) {
			return nil, fmt.Errorf("arming %s: the %s %s cannot be", c.Node, what, quoteName(v))
		}
	}
	if c.Disk != text(c.Disk, maxText) {
		return nil, refuse("give a path, a link below /dev/disk or a serial number", "%s is not a disk", quoteName(c.Disk))
	}
	if n.Install != nil && n.Install.ID == c.Install {
		return nil, fmt.Errorf("arming %s: the install %s has been before", c.Node, c.Install)
	}
	return c, nil
}

func (c Arm) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	n.State, n.Reason, n.Update, n.Held = Armed, "", nil, c.Hold
	n.Install = &Install{ID: c.Install, Image: c.Image, Digest: c.Digest, Disk: c.Disk, After: c.After, Armed: at}
	s.putNode(n.Name, n)
	s.tell(at, "arm", n, fmt.Sprintf("%s is armed: its next network boot erases a disk and installs %s", n.Name, c.Image))
	return nil
}

func (c Disarm) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil {
		return nil, err
	}
	if n.State == Armed || n.State == Installing || n.State == Failed {
		return c, nil
	}
	return nil, nil
}

func (c Disarm) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	was := n.State
	n.State, n.Reason, n.Install = atRest(n), "", nil
	s.putNode(n.Name, n)
	s.tell(at, "disarm", n, fmt.Sprintf("%s is no longer %s", n.Name, strings.ToLower(string(was))))
	return nil
}

// underway finds the node of an install that is permitted: the node is armed
// or installing, and by this install.
func (s *state) underway(node, install string) (*Node, error) {
	n, err := s.editing(node)
	if err != nil {
		return nil, err
	}
	if n.State != Armed && n.State != Installing {
		return nil, refuse("doppel deploy "+n.Name, "%s is %s: no install is permitted", n.Name, strings.ToLower(string(n.State)))
	}
	if n.Install == nil || n.Install.ID != install {
		return nil, refuse("boot the machine again", "%s is armed for another install than %s", n.Name, quoteName(install))
	}
	return n, nil
}

// bootOf finds an armed or installing node.
func (s *state) bootOf(node string) (*Node, error) {
	n, err := s.node(node)
	if err != nil {
		return nil, err
	}
	if n.Install == nil {
		return s.underway(node, "")
	}
	return s.underway(node, n.Install.ID)
}

func (c BeginBoot) prepare(s *state, at time.Time) (Change, error) {
	if _, err := s.bootOf(c.Node); err != nil {
		return nil, err
	}
	if len(c.Boot) < 16 || c.Boot != text(c.Boot, maxField) {
		return nil, fmt.Errorf("beginning a boot of %s: the nonce is too short or not text", c.Node)
	}
	return c, nil
}

func (c BeginBoot) apply(s *state, at time.Time) error {
	n, err := s.bootOf(c.Node)
	if err != nil {
		return err
	}
	n.Install.Boot, n.Install.Enrolled = c.Boot, false
	s.putNode(n.Name, n)
	s.tell(at, "boot", n, n.Name+" is given the installer")
	return nil
}

func (c Enrol) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.bootOf(c.Node)
	if err != nil {
		return nil, err
	}
	if c.Boot == "" || n.Install.Boot != c.Boot {
		return nil, refuse("boot the machine again", "%s was not given the installer for this boot", n.Name)
	}
	if n.Install.Enrolled {
		return nil, refuse("boot the machine again", "this boot of %s has enrolled already", n.Name)
	}
	if c.Key != text(c.Key, maxField) {
		return nil, fmt.Errorf("enrolling %s: %s is no digest of a key", c.Node, quoteName(c.Key))
	}
	return c, nil
}

func (c Enrol) apply(s *state, at time.Time) error {
	n, err := s.bootOf(c.Node)
	if err != nil {
		return err
	}
	n.Install.Enrolled, n.Install.BootKey = true, c.Key
	s.putNode(n.Name, n)
	s.tell(at, "enrol", n, n.Name+"'s installer has enrolled")
	return nil
}

func (c BeginInstall) prepare(s *state, at time.Time) (Change, error) {
	if _, err := s.underway(c.Node, c.Install); err != nil {
		return nil, err
	}
	c.Detail = text(c.Detail, maxText)
	return c, nil
}

func (c BeginInstall) apply(s *state, at time.Time) error {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return err
	}
	word := "installs"
	if n.State == Installing {
		word = "goes on installing"
	}
	n.State, n.Install.Updated = Installing, at
	s.putNode(n.Name, n)
	message := fmt.Sprintf("%s %s %s", n.Name, word, n.Install.Image)
	if c.Detail != "" {
		message += " on " + c.Detail
	}
	s.tell(at, "install", n, message)
	return nil
}

func (c ReportStage) prepare(s *state, at time.Time) (Change, error) {
	if _, err := s.underway(c.Node, c.Install); err != nil {
		return nil, err
	}
	c.Stage, c.Detail = text(c.Stage, maxField), text(c.Detail, maxText)
	c.Done, c.Total = max(c.Done, 0), max(c.Total, 0)
	return c, nil
}

func (c ReportStage) apply(s *state, at time.Time) error {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return err
	}
	fresh := n.Install.Stage != c.Stage
	c.into(n, at)
	if c.Writes && n.State == Installing {
		n.Runs, n.UpFrom = "", ""
	}
	s.putNode(n.Name, n)
	if fresh {
		message := n.Name + ": " + c.Stage
		if c.Detail != "" {
			message += ": " + c.Detail
		}
		s.tell(at, "stage", n, message)
	}
	return nil
}

func (c ReportStage) into(n *Node, at time.Time) {
	n.Install.Stage, n.Install.Detail, n.Install.Done, n.Install.Total, n.Install.Updated = c.Stage, c.Detail, c.Done, c.Total, at
}

func (c Certify) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return nil, err
	}
	if c.Key == "" || c.Key != text(c.Key, maxField) {
		return nil, fmt.Errorf("certifying %s: %s is no digest of a key", c.Node, quoteName(c.Key))
	}
	if n.Key == c.Key {
		return nil, nil
	}
	return c, nil
}

func (c Certify) apply(s *state, at time.Time) error {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return err
	}
	n.Key = c.Key
	s.putNode(n.Name, n)
	s.tell(at, "certify", n, n.Name+" has a certificate of its own")
	return nil
}

func (c Finish) prepare(s *state, at time.Time) (Change, error) {
	if n := s.nodes[c.Node]; n != nil && n.State == Installed && n.Install != nil && n.Install.ID == c.Install {
		return nil, nil // the answer to the first report was lost
	}
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return nil, err
	}
	if n.State != Installing {
		return nil, refuse("boot the machine again", "%s cannot finish: it was not given a plan", n.Name)
	}
	return c, nil
}

func (c Finish) apply(s *state, at time.Time) error {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return err
	}
	n.State, n.Reason, n.Runs = Installed, "", n.Install.Image
	n.Install.Stage, n.Install.Detail = "finish", ""
	n.Install.Updated, n.Install.Finished = at, at
	n.UpFrom, n.Parted, n.Enlisted = "", nil, time.Time{}
	s.putNode(n.Name, n)
	s.tell(at, "installed", n, fmt.Sprintf("%s is installed with %s after %s", n.Name, n.Install.Image, at.Sub(n.Install.Armed).Round(time.Second)))
	return nil
}

func (c Fail) prepare(s *state, at time.Time) (Change, error) {
	if n := s.nodes[c.Node]; n != nil && n.State == Failed && n.Install != nil && n.Install.ID == c.Install {
		return nil, nil // said before
	}
	if _, err := s.underway(c.Node, c.Install); err != nil {
		return nil, err
	}
	c.Reason = text(c.Reason, maxText)
	if c.Reason == "" {
		c.Reason = "no reason was given"
	}
	return c, nil
}

func (c Fail) apply(s *state, at time.Time) error {
	n, err := s.underway(c.Node, c.Install)
	if err != nil {
		return err
	}
	n.State, n.Reason = Failed, c.Reason
	n.Install.Updated = at
	s.putNode(n.Name, n)
	s.tell(at, "failed", n, n.Name+" failed: "+c.Reason)
	return nil
}

func (c Up) prepare(s *state, at time.Time) (Change, error) {
	if _, err := s.node(c.Node); err != nil {
		return nil, err
	}
	c.DiskGUID, c.BootID, c.Kernel = text(c.DiskGUID, maxField), text(c.BootID, maxField), text(c.Kernel, maxField)
	return c, nil
}

func (c Up) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	fresh := n.BootID != c.BootID || n.UpFrom != c.DiskGUID
	n.LastUp, n.UpFrom, n.BootID, n.Kernel = at, c.DiskGUID, c.BootID, c.Kernel
	s.putNode(n.Name, n)
	if fresh {
		s.tell(at, "up", n, fmt.Sprintf("%s is up from its own disk %s", n.Name, c.DiskGUID))
	}
	return nil
}
