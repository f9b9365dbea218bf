"""The two registries of the bench: one holds the base image, the other wants credentials and starts anew for each push."""
import base64, json, os, re, shutil, subprocess, time, urllib.request

from measure import stop

USER, PASSWORD = "strata", "strata-push"


class Registry:
    def __init__(self, host, folder, htpasswd=None):
        self.host, self.folder, self.process, self.served = host, folder, None, 0
        settings = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": f"{folder}/data"}, "delete": {"enabled": True}},
            "http": {"addr": host},
        }
        if htpasswd:
            settings["auth"] = {"htpasswd": {"realm": "bench", "path": str(htpasswd)}}
        os.makedirs(folder)
        with open(f"{folder}/settings.yml", "w") as file:
            json.dump(settings, file)  # JSON is YAML

    def start(self, content=None):
        """With what the folder `content` holds, or with nothing."""
        self.stop()
        shutil.rmtree(f"{self.folder}/data", ignore_errors=True)
        if content:
            subprocess.run(["cp", "-a", content, f"{self.folder}/data"], check=True)
        self.log = open(f"{self.folder}/log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", f"{self.folder}/settings.yml"], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/")
            except urllib.error.HTTPError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self):
        if self.process:
            self.served = self.requests()
            stop(self.process)
            self.process = None

    def requests(self):
        """How many it has answered since the bench began."""
        if not self.process:
            return self.served
        return self.served + len(re.findall(r'"[A-Z]+ /v2/\S* HTTP/1.1" \d', open(f"{self.folder}/log").read()))

    def get(self, path):
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Authorization": f"Basic {token}", "Accept": "application/vnd.oci.image.manifest.v1+json"})
        return urllib.request.urlopen(request).read()

    def layers(self, name, tag):
        return json.loads(self.get(f"{name}/manifests/{tag}"))["layers"]
