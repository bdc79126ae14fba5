// What the page does, in a real browser, with a real server behind it.
//
// What lives here: the checks. Each has a server and a page of its own. What does not: the server as a process
// (server.mjs), the browser and where things are on the page (browser.mjs), what has to be installed (run). The answers of
// the interface without a page are tested in ../tests.
import assert from "node:assert/strict";
import path from "node:path";
import { after, test } from "node:test";
import { close, Watched } from "./browser.mjs";
import { press, Server } from "./server.mjs";

after(close);

// With a server, and its page; at the end, nothing has happened that must not.
const check = (name, { server: how, page: shape, skip } = {}, body) => test(name, { skip, timeout: 180_000 }, async () => {
  const server = await Server.start(how);
  let seen;
  try {
    seen = await Watched.open(server, shape);
    await body(seen, server);
    seen.verify();
  } finally {
    await seen?.page.context().close();
    await server.kill();
  }
});

// One at a time, and a queue behind it: the leases last longer than the page needs to see them (some 20 s at 700 tokens per
// second; about three are enough).
const NARROW_BATCH = { args: ["--running", "1"] };
const QUEUE = 400;
const HOSTILE = "<img src=x onerror=alert(1)>";
const LOAD = "/v1/load_lora_adapter";

const only = (rows, name) => rows.filter((row) => row.name === name);
const generation = (rows, name) => Number(only(rows, name)[0]?.generation);
const leases = (rows, name) => Number(only(rows, name)[0]?.leases);
const names = (rows) => rows.map((row) => row.name);

check("it opens with what is loaded, and asks nothing of anybody else", {}, async (seen) => {
  const policy = seen.answer.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe-eval|\*|https?:/);
  const sets = await seen.read("sets");
  const told = sets.map(({ name, kind, generation, bytes, resident, leases }) =>
    [name, kind, generation, bytes, resident, leases]);
  assert.deepEqual(told, [
    ["pirate", "adapter", "2", "21.0 KiB", "yes", "0"],
    ["robot", "adapter", "3", "216.0 KiB", "yes", "0"],
    ["tiny-llama", "checkpoint", "1", "818.1 KiB", "yes", "0"],
  ]);
  assert.equal(await seen.page.locator("#model").textContent(), "tiny-llama");
  assert.equal(await seen.unload("tiny-llama").count(), 0, "the model is no adapter");
  assert.match(await seen.page.locator("#going tbody").textContent(), /^nothing/);
  assert.equal(await seen.page.locator("#running tbody").textContent(), "none");
  await seen.shown();
  // Who sees no bar is told what it shows.
  assert.match(await seen.page.getByRole("img").getAttribute("aria-label"), /^1\.0 MiB of 1\.0 MiB: resident 1\.0 MiB/);
  for (const table of ["Sets", "On their way out", "Running"]) {
    await seen.page.getByRole("table", { name: table, exact: true }).waitFor();
  }
});

check("the form loads an adapter, by keyboard too", {}, async (seen) => {
  const { page } = seen;
  await seen.load("shout", "shout");
  await seen.row("sets", "shout").waitFor();
  await page.getByText("Success: LoRA adapter 'shout' added successfully.").waitFor();
  assert.equal(await seen.said().getAttribute("class"), "");
  const [shout] = only(await seen.read("sets"), "shout");
  assert.deepEqual([shout.kind, shout.leases, shout.resident], ["adapter", "0", "yes"]);
  // What is new lights up once, and not again each second.
  await page.waitForFunction(() => document.getAnimations().length === 0);

  await page.getByLabel("name", { exact: true }).focus();
  await page.keyboard.type("2");
  for (const key of ["Tab", "Tab", "Tab", "Tab", "Enter"]) await page.keyboard.press(key);
  await page.getByText("Success: LoRA adapter 'shout2' added successfully.").waitFor();
  await seen.row("sets", "shout2").waitFor();
});

check("a load that fails says why, and changes nothing", {}, async (seen) => {
  const before = await seen.read("sets");
  seen.allow(/status of 404/, LOAD);
  await seen.load("shout", "../../etc");
  await seen.page.getByText(/lora_path leads to nothing in the directories/).waitFor();
  assert.equal(await seen.said().getAttribute("class"), "bad");
  // Not by its colour alone.
  assert.match(await seen.said().textContent(), /^Failed: /);
  const colour = (selector) => seen.page.locator(selector).evaluate((one) => getComputedStyle(one).color);
  assert.notEqual(await colour("#said"), await colour("body"));
  await seen.shown();
  assert.deepEqual(await seen.read("sets"), before);

  // A name that is taken, and no leave to replace it.
  seen.allow(/status of 400/, LOAD);
  await seen.load("pirate", "pirate-v2");
  await seen.page.getByText(/has already been loaded/).waitFor();
  await seen.shown();
  assert.deepEqual(await seen.read("sets"), before);

  // The next that succeeds is no error any more.
  await seen.load("shout", "shout");
  await seen.page.getByText(/^Success/).waitFor();
  assert.equal(await seen.said().getAttribute("class"), "");
});

check("a swap in place: the row stays, its generation goes up; who runs keeps the old one", { server: NARROW_BATCH },
  async (seen, server) => {
    const before = generation(await seen.read("sets"), "pirate");
    const requests = await press(server, "pirate", QUEUE);
    await seen.until("sets", (rows) => leases(rows, "pirate") > 0, "no lease was seen");
    const row = await seen.row("sets", "pirate").elementHandle();
    const identity = (await seen.read("sets"))[0].identity;
    await seen.load("pirate", "pirate-v2", true);
    const sets = await seen.until("sets", (rows) => generation(rows, "pirate") > before, "the generation did not go up");
    assert.ok(await row.evaluate((row) => row.isConnected), "another row is in its place");
    assert.equal(only(sets, "pirate").length, 1);
    assert.notEqual(only(sets, "pirate")[0].identity, identity);
    const full = (await server.registry()).catalog.sets.find((set) => set.name === "pirate").identity;
    assert.equal(await row.evaluate((row) => row.cells[3].title), full);
    const [old] = await seen.until("going", (rows) => rows.length === 1, "the old generation is not on its way out");
    assert.deepEqual([old.name, Number(old.generation)], ["pirate", before]);
    await requests.cancel();
    await seen.until("going", (rows) => rows.length === 0, "the old generation has not gone");
  });

check("an adapter that is unloaded while it runs goes when who holds it goes", { server: NARROW_BATCH },
  async (seen, server) => {
    const before = generation(await seen.read("sets"), "pirate");
    const requests = await press(server, "pirate", QUEUE);
    await seen.until("sets", (rows) => leases(rows, "pirate") > 0 && leases(rows, "tiny-llama") > 0, "no lease was seen");
    const [one] = await seen.until("running", (rows) => rows.length > 0, "nothing runs");
    assert.deepEqual([one.model, Number(one.generation)], ["pirate", before]);
    assert.match(one.request, /^cmpl-/);
    assert.match(one["age of its lease"], /^\d+(\.\d\d)? s$/);
    const figure = (name) => seen.page.locator(`[data-figure="${name}"]`).textContent();
    assert.equal(await figure("running"), "1");
    assert.ok(Number(await figure("waiting")) > 0, "nobody waits");

    await seen.unload("pirate").click();
    await seen.page.getByText("Success: LoRA adapter 'pirate' removed successfully.").waitFor();
    await seen.row("sets", "pirate").waitFor({ state: "detached" });
    assert.deepEqual(names(await seen.read("sets")), ["robot", "tiny-llama"]);
    const going = await seen.until("going", (rows) => rows.length === 1, "it is not on its way out");
    assert.deepEqual([going[0].name, Number(going[0].generation)], ["pirate", before]);
    assert.ok(Number(going[0].leases) > 0);
    // By their names, oldest first, and not all hundreds of them.
    const held = /^(cmpl-\S+ for \d+(\.\d\d)? s, ){8}and \d+ more$/;
    assert.match(going[0]["held by"], held);
    const late = await server.post("/v1/completions", { model: "pirate", prompt: "A" });
    assert.equal(late.status, 404);

    await requests.cancel();
    await seen.until("going", (rows) => rows.length === 0, "it has not gone");
    await seen.until("running", (rows) => rows.length === 0, "it still runs");
    assert.deepEqual(names(await seen.read("sets")), ["robot", "tiny-llama"]);
    await seen.until("sets", (rows) => leases(rows, "tiny-llama") === 0, "the model is still leased");
  });

check("the holders are those that run, by the same names", { server: NARROW_BATCH }, async (seen, server) => {
  const requests = await press(server, "pirate", QUEUE);
  await server.load("pirate", "pirate-v2", true);
  // Both are of one answer: what the page has shown at one moment.
  const both = () => seen.page.evaluate(() => [document.querySelector("#running td"), document.querySelector("#going td.list")]
    .map((cell) => cell?.textContent));
  await seen.until("going", (rows) => rows.length === 1, "nothing is on its way out");
  await seen.until("running", (rows) => rows.length === 1, "nothing runs");
  const [label, held] = await both();
  assert.ok(held.startsWith(`${label} for `), `${label} is not the oldest of: ${held}`);
  await requests.cancel();
});

check("a row's button unloads it, also when the page asks meanwhile", {}, async (seen) => {
  const { page } = seen;
  // The keyboard stays where it is while the page asks again.
  await seen.unload("robot").focus();
  await seen.shown();
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Unload robot");
  // And so does a button under a finger.
  await seen.unload("pirate").hover();
  await page.mouse.down();
  await seen.shown();
  await page.mouse.up();
  await page.getByText("Success: LoRA adapter 'pirate' removed successfully.").waitFor();
  await seen.row("sets", "pirate").waitFor({ state: "detached" });
  // Who was on the row that went is not thrown to the top.
  await seen.unload("robot").focus();
  await page.keyboard.press("Enter");
  await seen.row("sets", "robot").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-labelledby")), "of-sets");
  assert.deepEqual(names(await seen.read("sets")), ["tiny-llama"]);
});

check("a name of markup is text wherever it is shown", { server: NARROW_BATCH }, async (seen, server) => {
  await seen.load(HOSTILE, "shout");
  await seen.row("sets", HOSTILE).waitFor();
  await seen.page.getByText(`Success: LoRA adapter '${HOSTILE}' added successfully.`).waitFor();
  const requests = await press(server, HOSTILE, QUEUE);
  await seen.until("running", (rows) => rows.some((row) => row.model === HOSTILE), "it does not run");
  await seen.unload(HOSTILE).click();
  await seen.until("going", (rows) => names(rows).includes(HOSTILE), "it is not on its way out");
  // In a refusal, too.
  seen.allow(/status of 400/, LOAD);
  await server.load(HOSTILE, "robot");
  await seen.load(HOSTILE, "robot");
  await seen.page.getByText(/has already been loaded/).waitFor();
  assert.ok((await seen.said().textContent()).includes(HOSTILE));
  const made = await seen.page.evaluate(() => [document.images.length, document.scripts.length]);
  assert.deepEqual(made, [0, 1], "images and scripts");
  await requests.cancel();
});

check("a token: without it nothing is loaded or unloaded", { server: { env: { WEIGHBRIDGE_ADMIN_TOKEN: "open sesame" } } },
  async (seen) => {
    seen.allow(/status of 401/, LOAD);
    seen.allow(/status of 401/, "/v1/unload_lora_adapter");
    await seen.load("shout", "shout");
    await seen.page.getByText(/^Failed: .*token/).waitFor();
    await seen.unload("robot").click();
    await seen.page.getByText(/^Failed: .*token/).waitFor();
    await seen.shown();
    assert.deepEqual(names(await seen.read("sets")), ["pirate", "robot", "tiny-llama"]);
    await seen.page.getByLabel("token", { exact: true }).fill("open sesame");
    await seen.load("shout", "shout");
    await seen.row("sets", "shout").waitFor();
    await seen.unload("robot").click();
    await seen.row("sets", "robot").waitFor({ state: "detached" });
    // Not to be read over a shoulder, and nowhere but in its field.
    assert.equal(await seen.page.getByLabel("token", { exact: true }).getAttribute("type"), "password");
    assert.equal(await seen.page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length), 0);
  });

check("a server that has gone: what is shown is old, and since when; another in its place is taken for itself", {},
  async (seen, server) => {
    const { page } = seen;
    const stale = page.locator("#stale");
    assert.equal(await stale.textContent(), "");
    await server.load("shout", "shout");
    await seen.row("sets", "shout").waitFor();
    const old = (await server.registry()).catalog.sets.find((set) => set.name === "shout").handle;
    seen.allow(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/, "/v1/registry");
    const opened = Date.now();
    await server.kill();
    const killed = Date.now();
    await stale.filter({ hasText: "what is below is old" }).waitFor();
    const since = Date.parse(await stale.locator("time").getAttribute("datetime"));
    // The last answer: before the kill, and not long before.
    assert.ok(since > opened - 5000 && since <= killed, `${since} is not about ${opened} to ${killed}`);
    assert.match(await stale.textContent(), /^No answer since .*\d/);
    assert.match(await page.title(), /no answer/);
    assert.equal(await stale.getAttribute("role"), "status");
    // It is said once: a change each second would be read out each second.
    const text = await stale.textContent();
    await seen.shown();
    assert.equal(await stale.textContent(), text);
    // What was known is still there to be read.
    assert.deepEqual(names(await seen.read("sets")), ["pirate", "robot", "shout", "tiny-llama"]);
    // A press meanwhile is not lost without a word.
    seen.allow(/ERR_CONNECTION_REFUSED/, "/v1/unload_lora_adapter");
    await seen.unload("robot").click();
    await page.getByText(/^Failed: no answer/).waitFor();

    const next = await Server.start({ port: server.port });
    try {
      // It gives the same handle to another name.
      await next.load("other", "ranked");
      const sets = (await next.registry()).catalog.sets;
      assert.equal(sets.find((set) => set.name === "other").handle, old, "this no longer checks what it is there for");
      await page.waitForFunction(() => document.getElementById("stale").textContent === "");
      assert.equal(await page.title(), "weighbridge");
      await seen.row("sets", "other").waitFor();
      assert.deepEqual(names(await seen.read("sets")), ["other", "pirate", "robot", "tiny-llama"]);
      await seen.row("sets", "other").getByRole("button").click();
      await page.getByText("Success: LoRA adapter 'other' removed successfully.").waitFor();
      await seen.row("sets", "other").waitFor({ state: "detached" });
    } finally {
      await next.kill();
    }
  });

check("a server that takes questions and says nothing does not answer", {}, async (seen, server) => {
  server.pause();
  try {
    await seen.page.locator("#stale time").waitFor();
  } finally {
    server.resume();
  }
  await seen.page.waitForFunction(() => document.getElementById("stale").textContent === "");
});

// The widest that there can be, everywhere at once: names have at most 512 bytes.
const LONG = "W".repeat(512);
for (const width of [360, 320]) {
  check(`at ${width} pixels nothing leaves the page to the side`, { server: NARROW_BATCH, page: { viewport: { width, height: 740 } } },
    async (seen, server) => {
      await seen.load(LONG, "shout");
      await seen.row("sets", LONG).waitFor();
      await seen.said().filter({ hasText: LONG }).waitFor();
      const requests = await press(server, LONG, QUEUE);
      await server.load(LONG, "ranked", true);
      await seen.until("going", (rows) => rows.length === 1, "nothing is on its way out");
      await seen.until("running", (rows) => rows.length === 1, "nothing runs");
      const widths = () => seen.page.evaluate(() => {
        const root = document.documentElement;
        return [root.scrollWidth, document.body.scrollWidth + 2 * document.body.offsetLeft, root.clientWidth];
      });
      const [root, body, there] = await widths();
      assert.ok(root <= there && body <= there, `root ${root} and body ${body} of ${there}`);
      // What can be done is in sight without a scroll to the side.
      const button = await seen.unload(LONG).boundingBox();
      assert.ok(button.x >= 0 && button.x + button.width <= there, `the button is at ${button.x}`);
      await requests.cancel();
      seen.allow(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/, "/v1/registry");
      await server.kill();
      await seen.page.locator("#stale time").waitFor();
      const [late] = await widths();
      assert.ok(late <= there, `root ${late} of ${there}, when there is no answer`);
    });
}

for (const colorScheme of ["light", "dark"]) {
  check(`all text can be read: ${colorScheme}`, { server: NARROW_BATCH, page: { colorScheme, reducedMotion: "reduce" } },
    async (seen, server) => {
      seen.allow(/status of 404/, LOAD);
      await seen.load("shout", "../../etc");
      await seen.page.locator("#said.bad").filter({ hasText: /\w/ }).waitFor();
      const requests = await press(server, "pirate", QUEUE);
      await server.load("pirate", "pirate-v2", true);
      await seen.until("going", (rows) => rows.length === 1, "nothing is on its way out");
      assert.equal(await seen.page.evaluate(() => document.getAnimations().length), 0, "it moves for who wants no motion");
      seen.allow(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/, "/v1/registry");
      await requests.cancel();
      await server.kill();
      await seen.page.locator("#stale").filter({ hasText: /\w/ }).waitFor();
      const { ratio, text } = await seen.faintest();
      assert.ok(ratio >= 4.5, `${ratio.toFixed(2)}: ${text}`);
    });
}

const pictures = process.env.WEIGHBRIDGE_PICTURES;
for (const [name, shape] of [
  ["page", { viewport: { width: 1100, height: 900 }, colorScheme: "light" }],
  ["dark", { viewport: { width: 1100, height: 900 }, colorScheme: "dark" }],
  ["narrow", { viewport: { width: 360, height: 740 }, colorScheme: "light" }],
]) {
  check(`picture: ${name}.png`, {
    skip: pictures ? false : "nobody asked for pictures (--pictures DIR)",
    server: { args: ["--running", "4", "--limit", "2000000"] },
    page: { ...shape, reducedMotion: "reduce" },
  }, async (seen, server) => {
    // What the form did is shown at once, with what runs at that moment.
    await seen.fill("shout", "shout");
    const all = [await press(server, "pirate", 40)];
    await server.load("pirate", "pirate-v2", true);
    all.push(await press(server, "pirate", 6, 100), await press(server, "robot", 6, 200));
    await seen.press();
    await seen.page.getByText(/^Success/).waitFor();
    await seen.row("sets", "shout").waitFor();
    assert.equal((await seen.read("going")).length, 1, "nothing was on its way out");
    assert.notEqual((await seen.read("running")).length, 0, "nothing ran");
    await seen.page.screenshot({ path: path.join(pictures, `${name}.png`), fullPage: true });
    for (const requests of all) await requests.cancel();
  });
}
