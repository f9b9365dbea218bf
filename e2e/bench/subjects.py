"""The builders that are compared. Each measures a whole job: what it has to do from its own start to the image in the registry."""
import json, os, shutil, subprocess

from measure import Failed, add, stop
from registry import PASSWORD, USER


class Strata:
    """strata-builder, one process; `options` are more arguments."""

    def __init__(self, bench, options=()):
        self.bench, self.options = bench, options

    def measure(self, case):
        bench = self.bench
        report = bench.work / "report.json"
        more = ["--base-rootfs", bench.base_rootfs] if case.base == "local" else []
        context = bench.contexts / case.context
        command = [bench.program, "build", "--containerfile", context / "Containerfile", "--context", context, "--build-arg", f"BASE={bench.base}", "--authfile", bench.authfile]
        command += ["--plain-http", f"{bench.same.host},{bench.other.host}", "--scratch", bench.fresh("scratch"), "--report", report, "--source-date-epoch", "1700000000", "--progress", "plain", *more, *self.options]
        with bench.target(case) as target:
            command += ["--push", target]
            if case.target == "again":
                bench.meter.run(command, ())
            figures = bench.meter.run(command, {"strata-builder"})
            bench.keep_new_layers(case, target)
        return figures


class BuildKit:
    """buildkitd with a store of its own, and buildctl; the daemon's start is part of the job."""

    PROGRAMS = {"buildkitd", "buildctl"}

    def __init__(self, bench):
        self.bench, self.daemon = bench, None

    def build(self, case, target, *flags):
        context = self.bench.contexts / case.context
        command = [self.bench.peers / "buildctl", "--addr", self.socket, "build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", f"context={context}", "--local", f"dockerfile={context}"]
        command += ["--opt", "filename=Containerfile", "--opt", f"build-arg:BASE={self.bench.base}", *flags, "--output", f"type=image,name={target},push=true,oci-mediatypes=true"]
        return self.bench.meter.run(command, self.PROGRAMS, self.environment, [self.daemon.pid])

    def measure(self, case):
        bench = self.bench
        root = bench.fresh("buildkit")
        self.socket, self.environment = f"unix://{root}/socket", {"DOCKER_CONFIG": str(bench.authfile.parent)}
        (root / "buildkitd.toml").write_text(
            f'root = "{root}/root"\n[grpc]\naddress = ["{self.socket}"]\n[worker.containerd]\nenabled = false\n[worker.oci]\nenabled = true\nsnapshotter = "overlayfs"\n'
            f'binary = "{bench.runtime}/bin/runc"\nnetworkMode = "host"\ngc = false\ndefaultCgroupParent = "/{bench.group.name}/buildkit"\n'
            + "".join(f'[registry."{registry.host}"]\nhttp = true\n' for registry in (bench.same, bench.other))
        )
        ready = lambda: subprocess.run([bench.peers / "buildctl", "--addr", self.socket, "debug", "workers"], capture_output=True).returncode == 0
        try:
            self.daemon, started = bench.meter.start([bench.peers / "buildkitd", "--config", root / "buildkitd.toml"], self.PROGRAMS, ready)
            with bench.target(case) as target:
                if case.base == "local":
                    self.build(bench.warming, f"{target}-warming")
                    return self.build(case, target, "--no-cache")
                if case.target == "again":
                    self.build(case, target)
                    return self.build(case, target)
                return add(started, self.build(case, target))
        finally:
            stop(self.daemon)
            mounts = [line.split()[1] for line in open("/proc/mounts") if line.split()[1].startswith(str(root))]
            for mount in reversed(mounts):
                subprocess.run(["umount", mount])


class Buildah:
    """Debian's buildah as the incumbent's job runs it: pull, build and push are commands of their own. The base is pulled once a round and counts in each cold job of it."""

    def __init__(self, bench, driver):
        self.bench, self.driver, self.pulled = bench, driver, None
        self.store = bench.work / f"buildah-{driver}"
        # what it knows of blobs and registries; a job knows what its own pull has told it
        self.knowledge, self.kept = "/var/lib/containers/cache", bench.work / f"knowledge-{driver}"

    def buildah(self, command, *arguments):
        program = ["buildah", "--root", self.store, "--runroot", f"{self.store}-run", "--storage-driver", self.driver]
        return self.bench.meter.run([*program, command, *arguments], {"buildah"}, {"BUILDAH_ISOLATION": "chroot"})

    def begin_round(self):
        self.end_round()
        shutil.rmtree(self.knowledge, ignore_errors=True)
        self.pulled = None

    def end_round(self):
        if self.store.exists():
            self.buildah("rmi", "--all", "--force")
            shutil.rmtree(self.store)

    def measure(self, case):
        bench = self.bench
        if self.pulled is None:
            self.pulled = self.buildah("pull", "--quiet", "--tls-verify=false", bench.base)
            shutil.rmtree(self.kept, ignore_errors=True)
            shutil.copytree(self.knowledge, self.kept)
        context = bench.contexts / case.context
        with bench.target(case) as target:
            costs = self.job(context, target)
            if case.target == "again":
                costs = self.job(context, target)
            elif case.base != "local":
                costs = [self.pulled, *costs]
        self.buildah("rmi", "--force", "localhost/bench")
        return add(*costs)

    def job(self, context, target):
        no_proxy = [f"--build-arg={name}=" for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")]
        built = self.buildah("build", "--log-level=debug", "--tls-verify=false", f"--authfile={self.bench.authfile}", "--tag=localhost/bench", f"--file={context}/Containerfile", f"--build-arg=BASE={self.bench.base}", *no_proxy, context)
        shutil.rmtree(self.knowledge, ignore_errors=True)
        shutil.copytree(self.kept, self.knowledge)
        return [built, self.buildah("push", "--quiet", "--tls-verify=false", f"--authfile={self.bench.authfile}", "localhost/bench", f"docker://{target}")]


class Floor:
    """The same bytes moved, hashed, inflated, written and compressed by plain tools."""

    def __init__(self, bench):
        self.bench = bench

    def measure(self, case):
        bench, folder = self.bench, self.bench.fresh("floor")
        if case.target in ("again", "same"):
            return None
        digests = [layer["digest"] for layer in bench.base_layers]
        write = lambda name, wanted: (folder / name).write_text("".join(f"{digest}\n" for digest in wanted))
        write("unpack", digests if case.unpacks and case.base == "cold" else [])
        write("move", digests if case.target == "empty" else [])
        new = bench.new_layers(case)
        if new is None:
            return None
        shutil.copytree(new, folder / "layers")
        with bench.target(case) as target:
            host, _, rest = target.partition("/")
            return bench.meter.run([bench.here / "floor", f"{bench.same.host}/v2/standin/rhcos", f"{host}/v2/{rest.partition(':')[0]}", folder], ())


def authfile(folder, hosts):
    import base64

    folder.mkdir()
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {host: {"auth": token} for host in hosts}}))
    return path
