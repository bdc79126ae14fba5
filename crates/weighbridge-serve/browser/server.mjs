// The server as a process of its own, and clients that keep it busy.
//
// What lives here: starting, killing and stopping it, and long completions that hold leases. What does not: the browser
// (browser.mjs), what is checked (page.test.mjs).
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";

export const binary = process.env.WEIGHBRIDGE_BINARY;

export class Server {
  // With the tiny model that is built in. `port`: where one was that has gone.
  static async start({ args = [], env = {}, port = 0 } = {}) {
    const server = new Server();
    // What it unpacks goes here: it is killed, and then it leaves that behind.
    server.place = await mkdtemp(path.join(tmpdir(), "weighbridge-browser-"));
    const command = ["serve", "--json", "--listen", `127.0.0.1:${port}`, ...args];
    const own = { ...process.env, ...env, TMPDIR: server.place };
    if (!env.WEIGHBRIDGE_ADMIN_TOKEN) delete own.WEIGHBRIDGE_ADMIN_TOKEN;
    server.process = spawn(binary, command, { env: own, stdio: ["ignore", "pipe", "pipe"] });
    let complaints = "";
    server.process.stderr.on("data", (text) => { complaints += text; });
    server.ended = new Promise((done) => server.process.once("close", done));
    const line = new Promise((done) => createInterface(server.process.stdout).once("line", done));
    const failed = new Promise((_, no) => server.process.once("error", no));
    const first = await Promise.race([line, failed, server.ended.then(() => "")]);
    try {
      server.url = JSON.parse(first).url;
    } catch (error) {
      await server.kill();
      throw new Error(`it did not say where it listens, but ${JSON.stringify(first)}: ${complaints}`, { cause: error });
    }
    return server;
  }

  get port() {
    return Number(new URL(this.url).port);
  }

  // It answers nothing meanwhile, and its connections stay.
  pause() {
    this.process.kill("SIGSTOP");
  }

  resume() {
    this.process.kill("SIGCONT");
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
    await rm(this.place, { recursive: true, force: true });
  }

  async post(at, body, options = {}) {
    const headers = { "Content-Type": "application/json" };
    return fetch(`${this.url}${at}`, { method: "POST", headers, body: JSON.stringify(body), ...options });
  }

  async load(name, directory, inPlace = false) {
    const body = { lora_name: name, lora_path: directory, load_inplace: inPlace };
    const answer = await this.post("/v1/load_lora_adapter", body);
    if (!answer.ok) throw new Error(`${name} from ${directory}: ${await answer.text()}`);
  }

  async registry() {
    return (await fetch(`${this.url}/v1/registry`)).json();
  }
}

// Long streaming completions, admitted when this returns. At temperature 2 a sequence ends where chance has it, so one
// alone would be a race with the page; a queue of them holds its leases for as long as the page needs. `cancel` hangs
// up on all.
export const press = async (server, model, how_many, first_seed = 1) => {
  const controller = new AbortController();
  const one = async (seed) => {
    const asked = { model, prompt: "A", temperature: 2, max_tokens: 250, stream: true, seed };
    const answer = await server.post("/v1/completions", asked, { signal: controller.signal });
    if (!answer.ok) throw new Error(`${model}: ${await answer.text()}`);
    return answer;
  };
  const answers = await Promise.all(Array.from({ length: how_many }, (_, at) => one(first_seed + at)));
  const read = answers.map((answer) => answer.text().catch((error) => {
    if (error.name !== "AbortError" && !(error instanceof TypeError)) throw error;
  }));
  return {
    async cancel() {
      controller.abort();
      await Promise.all(read);
    },
  };
};
