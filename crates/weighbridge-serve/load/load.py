#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Press a server while its adapters are changed without pause, and check every answer.

    load/run [BINARY] [--seconds N] [--smollm2 DIR]      (it makes what this needs, and starts this)

What lives here: the server as a process of its own; clients that ask with OpenAI's client, in one piece and as a stream;
wrk beside them; one operator who loads, swaps and unloads; and then the checks: each answer is the whole expected
text of one version, of the version that was loaded under the generation that it names, while it was loaded; nothing
failed; and the bytes are what they were. What does not: what wrk sends (wrk.lua), what has to be installed (run).

The names, and what is done to them meanwhile:

    the model    asked, never changed
    pirate       asked; swapped in place between two versions without pause
    robot        asked, never changed
    visitor      asked; unloaded, and loaded again as one of two versions: 404 is right while it is away
    guest-N      not asked; loaded under a new name each time, and unloaded a few rounds later
"""
import argparse
import collections
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import openai

FIXTURES = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../fixtures"))
# No call of a client lasts so long unless something hangs.
PATIENCE = 60
# The server's own grace at its end, and some.
END = 45
GUESTS = 4


class Plan:
    """What is served, who asks, and what each version answers."""

    def __init__(self, smollm2):
        self.expected = {}  # version -> prompt -> (text, tokens)
        if smollm2 is None:
            with open(os.path.join(FIXTURES, "expected.json")) as file:
                known = json.load(file)
            self.most = known["max_new_tokens"]
            for case in known["cases"]:
                answers = self.expected.setdefault(case["adapter"] or "base", {})
                answers[case["prompt"]] = (case["completion"], len(case["completion_ids"]))
            self.arguments = []
            self.pirate, self.visitor, self.guest = ("pirate-v1", "pirate-v2"), ("shout", "ranked"), "robot"
            self.threads, self.wrk = 8, 8
        else:
            with open(os.path.join(FIXTURES, "smollm2", "expected.json")) as file:
                known = json.load(file)
            for version in ("base", "pirate", "robot"):
                self.expected[version] = {known["prompt"]: (known[version]["text"], len(known[version]["ids"]))}
            self.most = len(known["base"]["ids"])
            adapters = os.path.join(FIXTURES, "smollm2", "adapters")
            self.arguments = ["--model", smollm2, "--adapter-root", adapters]
            for name in ("pirate", "robot"):
                self.arguments += ["--adapter", f"{name}={os.path.join(adapters, name)}"]
            # There are two adapters only: a swap makes `pirate` speak as the other one.
            self.pirate, self.visitor, self.guest = ("pirate", "robot"), ("robot", "pirate"), "robot"
            self.threads, self.wrk = 4, 2
        self.prompts = list(self.expected["base"])

    def versions(self, name):
        """Which versions a name may ever have been."""
        return {"pirate": self.pirate, "robot": ("robot",), "visitor": self.visitor}.get(name, ("base",))


class Failures:
    """What must not be. Each kind is printed once, with how often."""

    def __init__(self):
        self.lock = threading.Lock()
        self.kinds = collections.Counter()

    def add(self, who, what):
        with self.lock:
            self.kinds[f"{who}: {what}"] += 1

    def count(self):
        return sum(self.kinds.values())


class Server:
    """The process, and plain HTTP to it."""

    def __init__(self, binary, arguments, log):
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        # It prints this line when it listens, or ends.
        line = self.process.stdout.readline()
        try:
            said = json.loads(line)
        except ValueError:
            # Why it did not is JSON of several lines.
            why = line + self.process.stdout.read()
            code = self.process.wait()
            log.seek(0)
            sys.exit(f"the server did not start: exit code {code}\n{why}{log.read()}".rstrip())
        self.url, self.model = said["url"].rstrip("/"), said["model"]

    def connect(self):
        where = urllib.parse.urlsplit(self.url)
        return http.client.HTTPConnection(where.hostname, where.port, timeout=PATIENCE)

    def end(self):
        """Ctrl-C. Returns the exit code; `None`: it does not end."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def get(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"GET {path}: {answer.status} {body[:200]!r}")
    return json.loads(body)


def charged(registry):
    """All bytes that the ledger has: those that serve, and those that are on their way."""
    ledger = registry["stats"]["ledger"]
    return sum(ledger[part] for part in ("resident", "retired", "kept", "pooled", "reserved"))


class Operator(threading.Thread):
    """Changes adapters, one after the other, until told to stop; and writes down what was loaded when.

    There is one operator, so the generation that the server lists after a load is that load's."""

    def __init__(self, server, plan, failures, stop):
        super().__init__(name="operator")
        self.plan, self.failures, self.stopping = plan, failures, stop
        self.connection = server.connect()
        self.took = collections.defaultdict(list)  # what -> seconds
        self.lives = {}  # (name, generation) -> [version, loaded since, gone at]
        self.now = {}  # name -> generation
        self.identities = {}  # version -> identity of its bytes
        self.guests = collections.deque()
        self.number = 0
        started = time.monotonic()
        self.away = [[started, None]]  # since, until of the visitor
        for name, version in ((server.model, "base"), ("pirate", plan.pirate[0]), ("robot", "robot")):
            self.loaded(name, version, started)

    def post(self, what, path, body):
        began = time.monotonic()
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read().decode(errors="replace")
        self.took[what].append(time.monotonic() - began)
        if answer.status != 200:
            raise RuntimeError(f"{what} {body}: {answer.status} {text[:300]}")
        return began

    def loaded(self, name, version, began):
        """The version that `name` has from now on. It may have been seen since `began`; what it was before, until now."""
        cards = get(self.connection, "/v1/models")["data"]
        now = time.monotonic()
        card = next((card for card in cards if card["id"] == name), None)
        if card is None:
            raise RuntimeError(f"{name} was loaded and is not listed")
        # The model itself is listed without: it is the registry's first.
        generation = card.get("generation", 1)
        if (name, generation) in self.lives:
            raise RuntimeError(f"{name}: generation {generation} was there before")
        identity = card.get("identity")
        if self.identities.setdefault(version, identity) != identity:
            raise RuntimeError(f"{version}: its bytes were {self.identities[version]} and are {identity}")
        if name in self.now:
            self.lives[name, self.now[name]][2] = now
        self.lives[name, generation] = [version, began, None]
        self.now[name] = generation

    def load(self, name, version):
        began = self.post("load", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": version})
        self.loaded(name, version, began)

    def swap(self, version):
        body = {"lora_name": "pirate", "lora_path": version, "load_inplace": True}
        self.loaded("pirate", version, self.post("swap", "/v1/load_lora_adapter", body))

    def unload(self, name):
        began = self.post("unload", "/v1/unload_lora_adapter", {"lora_name": name})
        self.lives[name, self.now.pop(name)][2] = time.monotonic()
        return began

    def one_round(self):
        self.number += 1
        # While the visitor is away:
        self.swap(self.plan.pirate[self.number % 2])
        self.load("visitor", self.plan.visitor[self.number % 2])
        self.away[-1][1] = time.monotonic()
        # While it is there:
        self.guests.append(f"guest-{self.number}")
        self.load(self.guests[-1], self.plan.guest)
        if len(self.guests) > GUESTS:
            self.unload(self.guests.popleft())
        self.away.append([self.unload("visitor"), None])

    def run(self):
        try:
            while not self.stopping.is_set():
                self.one_round()
        except Exception as error:
            self.failures.add("operator", f"{type(error).__name__}: {error}")

    def tidy(self):
        """Everything as it was at the start."""
        for name in (*self.guests, "visitor"):
            if name in self.now:
                self.unload(name)
        self.swap(self.plan.pirate[0])


Answer = collections.namedtuple("Answer", "name generation version asked admitted")


class Client(threading.Thread):
    """Asks with OpenAI's client, one question after the other. Half of the answers are streams."""

    def __init__(self, number, server, plan, failures, stop):
        super().__init__(name=f"client-{number}")
        self.number, self.plan, self.failures, self.stopping = number, plan, failures, stop
        # No retries: they would hide what failed.
        self.openai = openai.OpenAI(
            base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE
        )
        self.names = ("pirate", "visitor", "robot", server.model)
        self.took = {"whole": [], "streamed": []}
        self.answers, self.away = [], []
        self.tokens = 0

    def run(self):
        turn = self.number
        while not self.stopping.is_set():
            turn += 1
            name = self.names[turn % len(self.names)]
            prompt = self.plan.prompts[turn // len(self.names) % len(self.plan.prompts)]
            # Each name is asked both ways, in turn.
            kind = ("whole", "streamed")[(turn // len(self.names) + turn) % 2]
            asked = time.monotonic()
            try:
                text, by, tokens, admitted = getattr(self, kind)(name, prompt)
            except openai.NotFoundError as error:
                self.away.append((name, asked, time.monotonic(), str(error)))
                continue
            except Exception as error:
                self.failures.add(f"openai {kind}", f"{name}, {prompt!r}: {type(error).__name__}: {error}")
                continue
            self.took[kind].append(time.monotonic() - asked)
            self.tokens += tokens
            self.check(name, prompt, text, by, tokens, asked, admitted)

    def whole(self, name, prompt):
        answer = self.openai.completions.create(
            model=name, prompt=prompt, temperature=0, max_tokens=self.plan.most
        )
        now = time.monotonic()
        return answer.choices[0].text, answer.system_fingerprint, answer.usage.completion_tokens, now

    def streamed(self, name, prompt):
        stream = self.openai.completions.create(
            model=name,
            prompt=prompt,
            temperature=0,
            max_tokens=self.plan.most,
            stream=True,
            stream_options={"include_usage": True},
        )
        # The head of a stream comes after the admission, and admission fixes what answers.
        admitted = time.monotonic()
        pieces, reasons, by, ids, usage = [], [], set(), set(), None
        for piece in stream:
            by.add(piece.system_fingerprint)
            ids.add(piece.id)
            for choice in piece.choices:
                pieces.append(choice.text)
                if choice.finish_reason:
                    reasons.append(choice.finish_reason)
            usage = piece.usage or usage
        if len(by) != 1 or len(ids) != 1 or len(reasons) != 1 or usage is None:
            raise RuntimeError(f"a stream of {ids} by {by} that ended {reasons}, usage {usage}: {pieces}")
        return "".join(pieces), by.pop(), usage.completion_tokens, admitted

    def check(self, name, prompt, text, by, tokens, asked, admitted):
        """What can be known at once. Whether that version was loaded then is checked when the operator has stopped."""
        fits = [
            version
            for version in self.plan.versions(name)
            if self.plan.expected[version][prompt] == (text, tokens)
        ]
        who, _, generation = (by or "").rpartition("@")
        if len(fits) != 1 or who != name or not generation.isdigit():
            what = f"{name}, {prompt!r}: {text!r} ({tokens} tokens) by {by!r} is not one version's answer"
            return self.failures.add("openai", what)
        self.answers.append(Answer(name, int(generation), fits[0], asked, admitted))


class Wrk:
    """wrk as a process, with wrk.lua. `None` where it is not there."""

    def __init__(self, server, plan, seconds, directory):
        self.path = os.path.join(directory, "plan")
        names = ("pirate", "robot", server.model)
        with open(self.path, "w") as file:
            for prompt in plan.prompts:
                for name in names:
                    body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": plan.most}
                    print("ask", json.dumps(body), sep="\t", file=file)
            for name in names:
                for version in plan.versions(name):
                    for text, _ in plan.expected[version].values():
                        # As it is between the quotes of the answer's JSON.
                        quoted = json.dumps(text, ensure_ascii=False)[1:-1]
                        print("text", name, version, quoted, sep="\t", file=file)
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wrk.lua")
        command = ["wrk", "-t", "1", "-c", str(plan.wrk), "-d", f"{seconds}s", "--timeout", f"{PATIENCE}s"]
        command += ["-s", script, server.url, "--", self.path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.seconds = seconds

    def result(self, failures):
        """Returns requests, p50 and p99 in seconds, and the versions that were seen by fingerprint."""
        try:
            said, _ = self.process.communicate(timeout=self.seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            failures.add("wrk", "did not end")
        lines = [line.split("\t")[1:] for line in said.splitlines() if line.startswith("@\t")]
        requests, latency, seen = 0, {}, collections.Counter()
        for kind, *rest in lines:
            if kind == "requests":
                requests = int(rest[1])
            elif kind == "latency":
                latency[rest[0]] = float(rest[1]) / 1e6
            elif kind == "error" and int(rest[1]):
                failures.add("wrk", f"{rest[1]} errors of kind {rest[0]}")
            elif kind == "status" and rest[0] != "200":
                failures.add("wrk", f"{rest[1]} answers were {rest[0]}")
            elif kind == "seen":
                seen[rest[1], rest[2]] += int(rest[0])
            elif kind == "wrong":
                failures.add("wrk", f"not one version's answer: {rest[0]}")
        if not requests:
            failures.add("wrk", f"no request was answered: {said[-500:]}")
        return requests, latency.get("50"), latency.get("99"), seen


def check_versions(answers, away, operator, seen, failures):
    """What each answer says of itself, against what was loaded when."""
    lives = operator.lives
    for answer in answers:
        life = lives.get((answer.name, answer.generation))
        by = f"{answer.name}@{answer.generation}"
        if life is None:
            failures.add("versions", f"{by} was never loaded")
            continue
        version, since, until = life
        if version != answer.version:
            failures.add("versions", f"{by} is {version} and answered as {answer.version}")
        if answer.admitted < since or (until is not None and until < answer.asked):
            failures.add("versions", f"{by} answered what was asked while it was not loaded")
    for name, asked, answered, error in away:
        right = any(since <= answered and (until is None or asked <= until) for since, until in operator.away)
        if name != "visitor" or not right:
            failures.add("404", f"{name} while it was there: {error}")
    for (by, version), _ in seen.items():
        name, _, generation = by.rpartition("@")
        life = lives.get((name, int(generation)))
        if life is None or life[0] != version:
            failures.add("wrk", f"{by} is {life and life[0]} and answered as {version}")


def quiet(connection):
    """Asks the registry until nothing runs or is on its way out. The answer, or `None` when patience ends."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        now = get(connection, "/v1/registry")
        serving = now["serving"]
        busy = serving["running"] + serving["waiting"] + len(now["requests"]) + len(now["going"])
        if busy == 0 and now["stats"]["retired_generations"] == 0:
            return now
    return None


def parts(seconds):
    """p50 and p99, in words."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    pick = lambda part: ordered[min(len(ordered) - 1, int(part * len(ordered)))]
    return milliseconds(pick(0.5), pick(0.99))


def milliseconds(middle, late):
    return f"half within {middle * 1e3:.1f} ms, 99 of 100 within {late * 1e3:.1f} ms"


def main():
    parser = argparse.ArgumentParser(description="Press a server while its adapters are changed.")
    parser.add_argument("binary", help="the built weighbridge")
    parser.add_argument("--seconds", type=int, default=20, help="how long (%(default)s)")
    parser.add_argument("--smollm2", metavar="DIR", help="serve this model in place of the one that is built in")
    given = parser.parse_args()
    if given.seconds < 1:
        parser.error("--seconds: at least 1")
    with tempfile.TemporaryDirectory(prefix="weighbridge-load-") as directory:
        with open(os.path.join(directory, "stderr"), "w+") as log:
            sys.exit(press(given, directory, log))


def press(given, directory, log):
    plan, failures, stop = Plan(given.smollm2), Failures(), threading.Event()
    server = Server(given.binary, plan.arguments, log)
    try:
        return measured(given, directory, log, plan, failures, stop, server)
    finally:
        stop.set()
        # Only if something above went wrong: it has ended before.
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def measured(given, directory, log, plan, failures, stop, server):
    connection = server.connect()
    before = get(connection, "/v1/registry")
    operator = Operator(server, plan, failures, stop)
    clients = [Client(number, server, plan, failures, stop) for number in range(plan.threads)]
    wrk = None
    beside = "wrk is not installed: its part is SKIPPED"
    if shutil.which("wrk"):
        beside = f"wrk with {plan.wrk} connections"
    print(f"{server.model}, for {given.seconds} s: {plan.threads} threads of OpenAI's client {openai.__version__}; "
          f"{beside}; one operator", flush=True)

    began = time.monotonic()
    if shutil.which("wrk"):
        wrk = Wrk(server, plan, given.seconds, directory)
    for thread in (operator, *clients):
        thread.start()
    # Not to wait for anybody: this is how long the load lasts. A server that is gone ends it.
    try:
        server.process.wait(given.seconds)
        failures.add("server", f"ended by itself, exit code {server.process.returncode}")
    except subprocess.TimeoutExpired:
        pass
    stop.set()
    for thread in (operator, *clients):
        thread.join(2 * PATIENCE)
        if thread.is_alive():
            failures.add(thread.name, "hangs")
    lasted = time.monotonic() - began
    requests, middle, late, seen = wrk.result(failures) if wrk else (0, None, None, {})

    answers = [answer for client in clients for answer in client.answers]
    away = [one for client in clients for one in client.away]
    check_versions(answers, away, operator, seen, failures)
    after = None
    try:
        operator.tidy()
        # The one from before the load was idle, and the server lets go of such.
        connection = server.connect()
        after = quiet(connection)
    except Exception as error:
        failures.add("operator", f"at the end: {type(error).__name__}: {error}")
    # Idle, and open while the server is told to end: nobody's open connection may keep it.
    code = server.end()
    log.seek(0)
    said = log.read()

    whole = [took for client in clients for took in client.took["whole"]]
    streamed = [took for client in clients for took in client.took["streamed"]]
    tokens = sum(client.tokens for client in clients)
    print(f"requests by OpenAI's client, in one piece: {len(whole)}; {parts(whole)}")
    print(f"requests by OpenAI's client, as a stream:  {len(streamed)}; {parts(streamed)}")
    if wrk:
        print(f"requests by wrk:                           {requests}; {milliseconds(middle or 0, late or 0)}")
    for what in ("swap", "load", "unload"):
        took = operator.took[what]
        print(f"{what + 's:':<43}{len(took)}; {parts(took)}")
    there = sum(answer.name == "visitor" for answer in answers)
    print(f"404 for the visitor while it was away:     {len(away)} (and {there} answers while it was there)")
    if after:
        made = after["serving"]["tokens"] - before["serving"]["tokens"]
        print(f"tokens per second, all clients:            {made / lasted:.0f} (OpenAI's client: {tokens / lasted:.0f})")
        print(f"bytes in the ledger before:                {charged(before)} (peak {before['stats']['ledger']['peak']})")
        print(f"bytes in the ledger after:                 {charged(after)} (peak {after['stats']['ledger']['peak']})")
        print(f"generations that came and went:            {after['stats']['reclaimed_generations']}")
    print()

    for kind, count in failures.kinds.most_common(20):
        print(f"failure, {count} times: {kind}")
    if len(failures.kinds) > 20:
        print(f"... and {len(failures.kinds) - 20} kinds more")
    spoke = {(answer.name, answer.version) for answer in answers}
    both = {(name, version) for name in ("pirate", "visitor") for version in plan.versions(name)}
    checks = [
        ("every answer is one version's, of the generation that it names, and nothing failed", failures.count() == 0),
        ("at the end nothing runs, waits or is on its way out", after is not None),
        ("the server itself counted no failed request", bool(after) and after["serving"]["failed"] == 0),
        ("the ledger has the bytes that it had before", bool(after) and charged(after) == charged(before)
         and after["stats"]["ledger"]["resident"] == before["stats"]["ledger"]["resident"]),
        ("the server ended on Ctrl-C with exit code 0", code == 0),
        ("the server had nothing to complain about", said == ""),
    ]
    # With a slow model too few are answered for luck to have met all.
    enough = all(sum(answer.name == name for answer in answers) >= 20 for name in ("pirate", "visitor"))
    if enough:
        what = "there was something to check: answers of both versions of pirate and of visitor, and 404s"
        checks.insert(1, (what, both <= spoke and len(away) > 0))
    elif answers:
        print("SKIPPED whether both versions of pirate and of visitor were met: there were less than 20 answers of each")
    else:
        checks.insert(1, ("there was something to check", False))
    for what, good in checks:
        print("PASS" if good else "FAIL", what)
    if code != 0:
        print("its exit code:", "it did not end" if code is None else code)
    if said:
        print("it said:", said[-2000:])
    return 0 if all(good for _, good in checks) else 1


if __name__ == "__main__":
    main()
