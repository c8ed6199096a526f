# SPDX-License-Identifier: LGPL-2.1-or-later
#
#   make                  builds what is built: the policy module, and the libraries that are shipped
#   make install DESTDIR= installs the daemon, its client, units, D-Bus files, policy, manual pages and
#                         examples
#   make deb              builds build/svirtd_VERSION_all.deb
#
# Needs make, the policy's development files (selinux-policy-dev), and pip; "make deb" debhelper too.
# Only the libraries are fetched, and their sums checked: see packaging/requirements.txt.

prefix ?= /usr
bindir ?= $(prefix)/bin
libdir ?= $(prefix)/lib/svirtd
datadir ?= $(prefix)/share
mandir ?= $(datadir)/man
docdir ?= $(datadir)/doc/svirtd
sysconfdir ?= /etc
hook ?= $(sysconfdir)/libvirt/hooks/qemu.d/50-svirtd
unitdir ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
# Where the policy's development files are, here; not where anything is installed.
policymakefile ?= /usr/share/selinux/devel/Makefile

PIP ?= /usr/bin/python3 -m pip
INSTALL ?= install
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)

module := build/policy/svirtd.pp
# The same for policies with levels (MLS), where a range goes up to the highest.
module_mls := build/policy-mls/svirtd.pp
vendor := build/vendor/.stamp
deb := build/svirtd_$(VERSION)_all.deb
modules := $(sort $(shell find svirtd -name '*.py'))
fill = sed -e 's|@libdir@|$(libdir)|g' -e 's|@bindir@|$(bindir)|g' -e 's|@datadir@|$(datadir)|g' \
	-e 's|@unitdir@|$(unitdir)|g'

.PHONY: all policy vendor install deb clean
all: policy vendor
policy: $(module) $(module_mls)
vendor: $(vendor)
deb: $(deb)

# The policy's Makefile works where it is called.
$(module): policy/svirtd.te policy/svirtd.if policy/svirtd.fc
	mkdir -p build/policy
	cp $^ build/policy
	$(MAKE) -C build/policy -f $(policymakefile) svirtd.pp

$(module_mls): policy/svirtd.te policy/svirtd.if policy/svirtd.fc
	mkdir -p build/policy-mls
	cp $^ build/policy-mls
	$(MAKE) -C build/policy-mls -f $(policymakefile) NAME=mls TYPE=mls svirtd.pp

$(vendor): packaging/requirements.txt
	rm -rf build/vendor
	$(PIP) install --quiet --target build/vendor --no-compile --no-deps --require-hashes \
		--only-binary :all: -r packaging/requirements.txt
	rm -rf build/vendor/bin
	touch $@

install: all
	$(INSTALL) -d $(DESTDIR)$(libdir) $(DESTDIR)$(bindir) $(DESTDIR)$(unitdir)
	cp -pR build/vendor/. $(DESTDIR)$(libdir)
	rm $(DESTDIR)$(libdir)/.stamp
	for file in $(modules); do $(INSTALL) -D -m 644 $$file $(DESTDIR)$(libdir)/$$file || exit; done
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(libdir)/svirtd/contract dbus/*.xml
	$(fill) -e 's|@module@|svirtd.daemon|' packaging/launcher.in >$(DESTDIR)$(bindir)/svirtd
	$(fill) -e 's|@module@|svirtd.ctl.main|' packaging/launcher.in >$(DESTDIR)$(bindir)/svirtctl
	$(fill) packaging/selinux-policy.in >$(DESTDIR)$(libdir)/selinux-policy
	$(INSTALL) -d $(DESTDIR)$(sysconfdir)/libvirt/hooks/qemu.d
	$(fill) -e 's|@module@|svirtd.ctl.libvirt_hook|' packaging/launcher.in >$(DESTDIR)$(hook)
	chmod 755 $(DESTDIR)$(hook)
	chmod 755 $(DESTDIR)$(bindir)/svirtd $(DESTDIR)$(bindir)/svirtctl $(DESTDIR)$(libdir)/selinux-policy
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(unitdir) units/svirtd.service units/svirtd-libvirt.service
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(unitdir) units/svirt-vm@.service
	$(INSTALL) -D -m 644 units/svirtd.sysusers $(DESTDIR)$(sysusersdir)/svirtd.conf
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(sysconfdir)/svirtd units/svirtd.toml
	$(INSTALL) -d $(DESTDIR)$(sysconfdir)/svirtd/goals.d $(DESTDIR)$(sysconfdir)/svirtd/vms.d
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/dbus-1/system.d dbus/org.svirt1.conf
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/dbus-1/system-services dbus/org.svirt1.service
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/dbus-1/interfaces dbus/org.svirt1.*.xml
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/polkit-1/actions dbus/org.svirt1.policy
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/polkit-1/rules.d dbus/org.svirt1.rules
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/selinux/packages $(module) policy/svirtd_class.cil
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/selinux/packages/mls $(module_mls)
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(datadir)/selinux/devel/include/contrib policy/svirtd.if
	$(INSTALL) -D -m 755 -t $(DESTDIR)$(docdir)/examples examples/*
	for page in man/*.[0-9]; do \
		$(INSTALL) -D -m 644 -t $(DESTDIR)$(mandir)/man$${page##*.} $$page || exit; \
	done

# In a copy of the tree, with the libraries fetched before: the build itself needs no network.
$(deb): $(vendor) $(modules) $(wildcard dbus/* examples/* man/* units/* policy/*) \
		$(wildcard packaging/* packaging/debian/*) \
		Makefile pyproject.toml README.md NEWS
	rm -rf build/deb
	mkdir -p build/deb/svirtd/build
	cp -pR Makefile pyproject.toml README.md NEWS svirtd dbus examples man units policy packaging \
		build/deb/svirtd
	cp -pR build/vendor build/deb/svirtd/build
	cp -pR packaging/debian build/deb/svirtd/debian
	cd build/deb/svirtd && dpkg-buildpackage --build=all --no-sign --unsigned-changes >../log 2>&1 \
		|| { cat ../log >&2; exit 1; }
	cp build/deb/svirtd_$(VERSION)_all.deb $@

clean:
	rm -rf build
