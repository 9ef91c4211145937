# vmstream: build, installation and the doors to its checks. `make help` lists them.

PREFIX     = /usr/local
LIBDIR     = $(PREFIX)/lib
INCLUDEDIR = $(PREFIX)/include
BINDIR     = $(PREFIX)/bin
MANDIR     = $(PREFIX)/share/man
DOCDIR     = $(PREFIX)/share/doc/vmstream
APPDIR     = $(PREFIX)/share/applications
# DESTDIR: put before every path of an installation, for packagers; never written into a file.
DESTDIR    =

# How long `make fuzz` stays with each parser.
FUZZ_SECONDS = 60

CARGO   = cargo
INSTALL = install

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
MAJOR   := $(word 1,$(subst ., ,$(VERSION)))
MINOR   := $(word 2,$(subst ., ,$(VERSION)))
# The same rule as in build.rs, which gives the library its name.
ABI     := $(if $(filter 0,$(MAJOR)),0.$(MINOR),$(MAJOR))
LIB     := libvmstream.so
OUT     := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release

MAN_PAGES := $(wildcard docs/man/*.[1-8])
DOCUMENTS := $(wildcard README.md CHANGELOG.md LICENSE* docs/*.md)

.PHONY: all help build header install uninstall demo demo-restore demo-hold test fuzz bench nbdkit qemu uml clean

all: build

help:
	@echo 'make             build the library and the tool (release)'
	@echo 'make install     install under PREFIX=$(PREFIX), staged in DESTDIR; also make uninstall'
	@echo 'make demo        boot a guest from a streamed disk over a slow link, five ways, and compare'
	@echo 'make demo-restore let an open spreadsheet in a large Debian go on elsewhere, over slow links'
	@echo 'make demo-hold   hold a server at the end of a very slow link until it will not stall, and draw it (10 min)'
	@echo 'make test        everything that is checked before a change goes in; the last line sums up'
	@echo 'make fuzz        feed all parsers with made-up bytes, FUZZ_SECONDS=$(FUZZ_SECONDS) each'
	@echo 'make uml         build User-Mode Linux with streamed disks, and say how to start it'
	@echo 'make bench       measure; figures are for this machine only'
	@echo 'make qemu        build QEMU with the block driver, once, and say where it is'
	@echo 'make nbdkit      build the plugin of nbdkit and say where it is'
	@echo 'make header      write include/vmstream.h anew from src/capi'
	@echo 'make clean       remove what was built'

build:
	scripts/install-deps.sh build
	$(CARGO) build --release --locked

header:
	VMS_UPDATE_HEADER=1 $(CARGO) test --test header

# Installs what `make` built, so that `sudo make install` neither compiles nor leaves root's files in target/.
install:
	@test -x $(OUT)/vmstream || { echo 'nothing built yet: run make first' >&2; exit 1; }
	@objdump -p $(OUT)/$(LIB) | grep -q 'SONAME *$(LIB)\.$(ABI)$$' || \
		{ echo '$(OUT)/$(LIB) does not name itself $(LIB).$(ABI): run make again' >&2; exit 1; }
	$(INSTALL) -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(DOCDIR)'
	$(INSTALL) -m 755 $(OUT)/$(LIB) '$(DESTDIR)$(LIBDIR)/$(LIB).$(VERSION)'
	ln -sf $(LIB).$(VERSION) '$(DESTDIR)$(LIBDIR)/$(LIB).$(ABI)'
	ln -sf $(LIB).$(ABI) '$(DESTDIR)$(LIBDIR)/$(LIB)'
	$(INSTALL) -m 644 $(OUT)/libvmstream.a '$(DESTDIR)$(LIBDIR)/'
	$(INSTALL) -m 644 include/vmstream.h '$(DESTDIR)$(INCLUDEDIR)/'
	sed -e 's|@prefix@|$(PREFIX)|' -e 's|@libdir@|$(LIBDIR)|' -e 's|@includedir@|$(INCLUDEDIR)|' \
		-e 's|@version@|$(VERSION)|' vmstream.pc.in > '$(DESTDIR)$(LIBDIR)/pkgconfig/vmstream.pc'
	chmod 644 '$(DESTDIR)$(LIBDIR)/pkgconfig/vmstream.pc'
	$(INSTALL) -m 755 $(OUT)/vmstream '$(DESTDIR)$(BINDIR)/'
	for page in $(MAN_PAGES); do \
		$(INSTALL) -D -m 644 $$page "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}" || exit 1; \
	done
	$(INSTALL) -m 644 $(DOCUMENTS) '$(DESTDIR)$(DOCDIR)/'
	$(INSTALL) -D -m 644 share/vmstream.desktop '$(DESTDIR)$(APPDIR)/vmstream.desktop'

uninstall:
	rm -f '$(DESTDIR)$(LIBDIR)/$(LIB)' '$(DESTDIR)$(LIBDIR)/$(LIB).$(ABI)' '$(DESTDIR)$(LIBDIR)/$(LIB).$(VERSION)' \
		'$(DESTDIR)$(LIBDIR)/libvmstream.a' '$(DESTDIR)$(LIBDIR)/pkgconfig/vmstream.pc' \
		'$(DESTDIR)$(INCLUDEDIR)/vmstream.h' '$(DESTDIR)$(BINDIR)/vmstream' '$(DESTDIR)$(APPDIR)/vmstream.desktop'
	for page in $(MAN_PAGES); do rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}"; done
	rm -rf '$(DESTDIR)$(DOCDIR)'

demo:
	scripts/demo.sh

demo-restore:
	scripts/demo-restore.sh

demo-hold:
	scripts/demo-hold.sh

test:
	scripts/test.sh

fuzz:
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh

bench:
	$(CARGO) bench

uml:
	@scripts/build-uml.sh all | { while read -r kernel; do echo "$$kernel/linux"; last=$$kernel; done; \
		[ -n "$$last" ] || exit 1; \
		echo; echo 'A guest from a disk on a web server:'; \
		echo '  $(OUT)/vmstream serve "$$(scripts/build-root.sh)" --rate 25mbit --rtt 50ms &'; \
		echo "  export LD_LIBRARY_PATH=$$(scripts/stage.sh)/lib"; \
		echo "  $$last/linux ubd0=stream:http://127.0.0.1:8080/disk.img,cache=/tmp/c root=/dev/ubda rw" \
			'mem=256M con=null con0=fd:0,fd:1 init=/demo/init </dev/null'; }

qemu:
	@scripts/build-qemu.sh

nbdkit:
	@scripts/build-nbdkit.sh

clean:
	$(CARGO) clean
