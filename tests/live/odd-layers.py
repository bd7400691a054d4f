# odd-layers DIR: an OCI layout in DIR with localhost/odd:1, whose layers use all that containerd unpacks in a way of its own.
import hashlib, io, json, os, struct, sys, tarfile

out = sys.argv[1]
blobs = os.path.join(out, "blobs/sha256")
os.makedirs(blobs)


def put(data):
    name = hashlib.sha256(data).hexdigest()
    with open(os.path.join(blobs, name), "wb") as file:
        file.write(data)
    return {"digest": "sha256:" + name, "size": len(data)}


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 7, NOBODY), (2, 5, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))
MINIMAL = acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (2, 7, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY))
CAPS = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


class Layer:
    def __init__(self):
        self.room = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.room, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, data=b"", mode=0o644, owner=(0, 0), mtime=86400, xattrs={}, link="", device=(0, 0)):
        info = tarfile.TarInfo(name)
        info.type, info.mode, (info.uid, info.gid), info.mtime, info.linkname = kind, mode, owner, mtime, link
        info.devmajor, info.devminor, info.size = *device, len(data)
        for key, value in xattrs.items():
            info.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
        self.tar.addfile(info, io.BytesIO(data))

    def dir(self, name, mode=0o755, **more):
        self.add(name, tarfile.DIRTYPE, mode=mode, **more)

    def done(self):
        self.tar.close()
        return self.room.getvalue()


# tarfile writes attributes as UTF-8 only, so bytes that are none are put in afterwards.
def layer_one():
    l = Layer()
    l.dir("./", mode=0o700, owner=(5, 5))
    l.dir("usr/lib/", mtime=1000000000.25)
    l.add("lib", tarfile.SYMTYPE, link="usr/lib", mode=0o777)
    l.add("lib/file", data=b"through a link")
    l.add("abs", tarfile.SYMTYPE, link="/usr/../usr/lib", mode=0o777)
    l.add("abs/other", data=b"through an absolute one")
    l.add("/rooted/file", data=b"rooted")
    l.add("../../above", data=b"above")
    l.add("usr/x/../y/./file", data=b"cleaned")
    l.add("dup", data=b"first", mode=0o600, owner=(1, 1))
    l.add("dup", data=b"second!", mode=0o640, owner=(2, 3), mtime=99)
    l.add("turned", data=b"a file")
    l.dir("turned", mode=0o711)
    l.add("turned/in", data=b"in it")
    l.dir("gone")
    l.add("gone/with/it", data=b"x")
    l.add("gone", data=b"a file now")
    l.add("late/child", data=b"before its directory")
    l.dir("late", mode=0o2750, owner=(4, 4), mtime=77)
    l.add("late/after", data=b"after it")
    l.add("one", data=b"several names", mode=0o600, xattrs={"user.a": b"1", "user.b": b""})
    l.add("two", tarfile.LNKTYPE, link="one", mode=0o4755, owner=(7, 8), mtime=4242, xattrs={"user.a": b"2"})
    l.add("usr/three", tarfile.LNKTYPE, link="./two", mode=0o4755, owner=(7, 8), mtime=4243.5)
    l.add("linked-link", tarfile.LNKTYPE, link="lib", mode=0o777)
    l.add("capable", data=b"x", xattrs={"security.capability": CAPS})
    l.add("was-capable", data=b"x", xattrs={"security.capability": CAPS})
    l.add("was-capable-too", tarfile.LNKTYPE, link="was-capable")
    l.add("old", data=b"x", mtime=-1.5)
    l.add("far", data=b"x", mtime=10_000_000_000)
    l.add("fine", data=b"x", mtime=1234567890.123456)
    l.add("null", tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    l.add("disk", tarfile.BLKTYPE, device=(259, 70000), mode=0o660, owner=(0, 6))
    l.add("pipe", tarfile.FIFOTYPE, mode=0o622)
    l.add("untrusted", data=b"x", xattrs={"trusted.x": b"1", "trusted.overlay.redirect": b"/etc"})
    l.dir("acl", xattrs={"system.posix_acl_default": DEFAULT}, mode=0o750)
    l.add("acl/inherits", data=b"x", mode=0o600)
    l.dir("acl/dir", mode=0o700)
    l.add("acl/own", data=b"x", mode=0o640, xattrs={"system.posix_acl_access": ACCESS})
    l.add("masked", data=b"x", mode=0o604, xattrs={"system.posix_acl_access": ACCESS})
    l.add("minimal", data=b"x", mode=0o644, xattrs={"system.posix_acl_access": MINIMAL})
    l.add("empty")
    l.add("big", data=bytes(3 << 20) + b"end")
    l.add("odd\udcff\x1bname", data=b"x")
    l.dir("private", mode=0o700, owner=(7, 8), xattrs={"user.note": b"kept"})
    l.dir("private/deep", mode=0o1777)
    l.add("private/deep/file", data=b"x")
    for name in ["opaque", "opaque/sub", "opaque/twice", "replaced", "again"]:
        l.dir(name)
        l.add(name + "/old", data=b"old")
    l.add("delete-me", data=b"x")
    l.add("stays", data=b"stays")
    return l.done()


def layer_two():
    l = Layer()
    l.add("private/deep/new", data=b"its parents have no entries", mode=0o600)
    l.add(".wh.delete-me", owner=(3, 4))
    l.add("opaque/sub/new", data=b"before the mark")
    l.add("opaque/.wh..wh..opq")
    l.add("opaque/new", data=b"after the mark")
    l.dir("opaque/twice", mode=0o500)
    l.add("replaced", data=b"a file in a directory's place")
    l.add("private/.wh.nothing")
    l.add("stays", data=b"stays!")
    l.dir("usr", mode=0o711, mtime=5)
    l.add("usr/lib/own", data=b"x")
    l.add("here", data=b"x")
    l.add("here-too", tarfile.LNKTYPE, link="/here", mode=0o600)
    return l.done()


def layer_three():
    l = Layer()
    l.add("private/deep/deeper/new", data=b"x")
    l.add(".wh.again")
    l.dir("again", mode=0o711)
    l.add("again/new", data=b"x")
    l.add("opaque/sub/.wh.new")
    l.add("wide/a/b/c/d", data=b"x")
    return l.done()


layers = [layer_one(), layer_two(), layer_three(), open(sys.argv[2], "rb").read()]
diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
config = {"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
V = "application/vnd.oci.image."
manifest = {
    "schemaVersion": 2,
    "mediaType": V + "manifest.v1+json",
    "config": {"mediaType": V + "config.v1+json", **put(json.dumps(config).encode())},
    "layers": [{"mediaType": V + "layer.v1.tar", **put(layer)} for layer in layers],
}
named = {"io.containerd.image.name": "localhost/odd:1", "org.opencontainers.image.ref.name": "localhost/odd:1"}
entry = {"mediaType": V + "manifest.v1+json", **put(json.dumps(manifest).encode()), "annotations": named}
for name, content in [("index.json", {"schemaVersion": 2, "manifests": [entry]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"})]:
    with open(os.path.join(out, name), "w") as file:
        json.dump(content, file)
