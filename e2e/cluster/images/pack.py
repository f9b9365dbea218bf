#!/usr/bin/env python3
"""Packs a folder as an image of one layer into an OCI archive that `ctr images import` reads.
usage: pack.py FOLDER NAME ARCHIVE COMMAND    The same folder gives the same bytes."""
import hashlib, io, json, os, sys, tarfile

folder, name, archive, command = sys.argv[1:5]


def plain(info):
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for entry in sorted(os.listdir(folder)):
        tar.add(os.path.join(folder, entry), entry, filter=plain)
layer = layer.getvalue()

out = tarfile.open(archive, "w")


def put(path, content):
    info = tarfile.TarInfo(path)
    info.size = len(content)
    out.addfile(info, io.BytesIO(content))


def blob(content, media_type):
    digest = hashlib.sha256(content).hexdigest()
    put(f"blobs/sha256/{digest}", content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


oci = "application/vnd.oci.image."
layer_descriptor = blob(layer, oci + "layer.v1.tar")
config = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Cmd": [command], "Env": ["PATH=/bin"]},
    "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
}
manifest = {
    "schemaVersion": 2,
    "mediaType": oci + "manifest.v1+json",
    "config": blob(json.dumps(config).encode(), oci + "config.v1+json"),
    "layers": [layer_descriptor],
}
top = blob(json.dumps(manifest).encode(), manifest["mediaType"])
top["annotations"] = {"io.containerd.image.name": name}
put("index.json", json.dumps({"schemaVersion": 2, "manifests": [top]}).encode())
put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
out.close()
