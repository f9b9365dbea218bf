"""What does a command cost? CPU of a control group, bytes written, the largest resident set of the builder, bytes and requests to the registries."""
import os, re, signal, subprocess, threading, time

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


class Group:
    """A control group that holds a command, its daemon and their containers, so that nothing depends on who waits for whom."""

    def __init__(self, name):
        self.name = name
        self.folder = f"/sys/fs/cgroup/{name}" if V2 else f"/sys/fs/cgroup/cpuacct/{name}"
        os.makedirs(self.folder + "/steps", exist_ok=True)

    def cpu(self):
        if V2:
            return int(re.search(r"usage_usec (\d+)", open(self.folder + "/cpu.stat").read())[1]) / 1e6
        return int(open(self.folder + "/cpuacct.usage").read()) / 1e9

    def enter(self):
        open(self.folder + "/steps/cgroup.procs", "w").write("0")

    def processes(self):
        for folder, _, _ in os.walk(self.folder):
            try:
                yield from open(folder + "/cgroup.procs").read().split()
            except OSError:
                pass

    def remove(self):
        # runc makes its parent in every hierarchy
        for hierarchy in [""] if V2 else os.listdir("/sys/fs/cgroup"):
            for folder, _, _ in os.walk(f"/sys/fs/cgroup/{hierarchy}/{self.name}".replace("//", "/"), topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


class Meter:
    """Runs commands in the group and adds up what they cost."""

    METRICS = {"wall": "s", "cpu": "s", "disk": "MB", "rss": "MiB", "wire": "MB", "requests": "1"}

    def __init__(self, group, registries, log):
        self.group, self.registries, self.log = group, registries, log

    def spawn(self, command, environment):
        self.log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        self.log.flush()
        return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env={**os.environ, **environment}, start_new_session=True, preexec_fn=self.group.enter)

    def start(self, command, builder, ready, environment={}):
        """As `run`, for a daemon: until `ready` says that it answers. Gives its process and the cost so far."""
        with Cost(self, builder) as cost:
            daemon = self.spawn(command, environment)
            cost.daemons.append(daemon.pid)
            while not ready():
                if daemon.poll() is not None:
                    raise Failed(command, daemon.returncode)
                time.sleep(0.02)
        return daemon, cost.figures

    def run(self, command, builder, environment={}, daemons=()):
        """The cost of a command; `builder` names the programs whose memory counts, `daemons` work for it."""
        with Cost(self, builder, daemons) as cost:
            code = self.spawn(command, environment).wait()
        if code:
            raise Failed(command, code)
        return cost.figures


class Failed(Exception):
    def __init__(self, command, code):
        super().__init__(f"{' '.join(map(str, command))[:200]} …: exit status {code}")


class Cost:
    """The difference between before and after a block."""

    def __init__(self, meter, builder, daemons=()):
        self.meter, self.builder, self.daemons, self.peak, self.done = meter, builder, list(daemons), 0, threading.Event()

    def counters(self):
        # this program is the first process of its namespace: what it has reaped, orphans too, is in its own counter of bytes made dirty
        written = sum(int(re.search(r"^write_bytes: (\d+)", open(f"/proc/{who}/io").read(), re.M)[1]) for who in ["self", *self.daemons])
        return {"wall": time.monotonic(), "cpu": self.meter.group.cpu(), "disk": written / 1e6, "wire": bytes_on_loopback() / 1e6, "requests": sum(r.requests() for r in self.meter.registries)}

    def sample(self):
        while not self.done.wait(0.03):
            for process in self.meter.group.processes():
                try:
                    status = open(f"/proc/{process}/status").read()
                except OSError:
                    continue
                peak = re.search(r"^VmHWM:\s+(\d+)", status, re.M)
                if peak and re.search(r"^Name:\s+(.*)", status)[1] in self.builder:
                    self.peak = max(self.peak, int(peak[1]) / 1024)

    def __enter__(self):
        subprocess.run(["sync"])
        self.sampler = threading.Thread(target=self.sample)
        self.before = self.counters()
        self.sampler.start()
        return self

    def __exit__(self, *_):
        wall = time.monotonic()
        self.done.set()
        self.sampler.join()
        reap()
        time.sleep(0.05)  # the registry's log
        after = self.counters() | {"wall": wall}
        self.figures = {name: after[name] - self.before[name] for name in after} | {"rss": self.peak}


def add(*costs):
    """The cost of one after the other."""
    return {name: (max if name == "rss" else sum)(cost[name] for cost in costs) for name in Meter.METRICS}


def reap():
    """Orphans of a finished command come to the first process of the namespace."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def count_loopback(ports):
    for port in ports:
        subprocess.run(["iptables", "-A", "OUTPUT", "-o", "lo", "-p", "tcp", "--dport", str(port)], check=True)
        subprocess.run(["iptables", "-A", "OUTPUT", "-o", "lo", "-p", "tcp", "--sport", str(port)], check=True)


def bytes_on_loopback():
    """Both ways, TCP headers included."""
    table = subprocess.run(["iptables", "-nvxL", "OUTPUT"], capture_output=True, text=True, check=True).stdout
    return sum(int(line.split()[1]) for line in table.splitlines() if " tcp " in line)


def stop(process):
    if process and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()
