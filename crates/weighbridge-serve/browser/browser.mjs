// The browser, and the page in it.
//
// What lives here: one chromium for all checks; a page that writes down what must not happen (errors, requests to
// elsewhere, dialogs); where things are on the page, by the names that people and screen readers go by. What does not:
// the server (server.mjs), what is checked (page.test.mjs).
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

// A page in place of the one in the binary, so that a change can be tried before minutes of building.
const instead = process.env.WEIGHBRIDGE_PAGE;

// The page asks each second; the machine may be busy.
const PATIENCE = 20_000;

let shared;
export const browser = async () => {
  shared ??= await chromium.launch({
    executablePath: process.env.CHROMIUM,
    // chromium does not start its sandbox as root.
    chromiumSandbox: process.getuid() !== 0,
  });
  return shared;
};
export const close = async () => shared?.close();

// The page of this server, opened, its first figures there.
export class Watched {
  constructor(page, origin) {
    Object.assign(this, { page, origin, errors: [], elsewhere: [], dialogs: [], allowed: [] });
    page.setDefaultTimeout(PATIENCE);
    page.on("console", (message) => {
      if (!["error", "warning"].includes(message.type())) return;
      this.errors.push({ text: message.text(), at: new URL(message.location().url || "none:").pathname });
    });
    page.on("pageerror", (error) => this.errors.push({ text: String(error), at: "script" }));
    page.on("request", (request) => {
      if (new URL(request.url()).origin !== origin) this.elsewhere.push(request.url());
    });
    page.on("dialog", (dialog) => { this.dialogs.push(dialog.message()); return dialog.dismiss(); });
  }

  static async open(server, options = {}) {
    const context = await (await browser()).newContext({ viewport: { width: 1100, height: 900 }, ...options });
    const watched = new Watched(await context.newPage(), new URL(server.url).origin);
    if (instead) {
      // The server's own headers, its policy among them, with the other text.
      await watched.page.route((url) => url.pathname === "/", async (route) => {
        await route.fulfill({ response: await route.fetch(), body: await readFile(instead, "utf8") });
      });
    }
    watched.answer = await watched.page.goto(server.url);
    await watched.row("sets", "tiny-llama").waitFor();
    return watched;
  }

  // The browser writes down each answer that is no success. This one was meant to be none.
  allow(text, at) {
    this.allowed.push({ text, at });
  }

  verify() {
    const meant = (error) => this.allowed.some(({ text, at }) => text.test(error.text) && at === error.at);
    assert.deepEqual(this.errors.filter((error) => !meant(error)), [], "errors on the console");
    assert.deepEqual(this.elsewhere, [], "requests to other origins");
    assert.deepEqual(this.dialogs, [], "dialogs");
  }

  // The row whose first cell says this, no more and no less.
  row(table, name) {
    const whole = new RegExp(`^${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`);
    const first = this.page.locator("td:first-child").filter({ hasText: whole });
    return this.page.locator(`#${table} tbody tr`).filter({ has: first });
  }

  // What a table says, by its own headings.
  read(table) {
    return this.page.locator(`#${table}`).evaluate((table) => {
      const headings = [...table.tHead.rows[0].cells].map((th) => th.textContent);
      const rows = [...table.tBodies[0].rows].filter((row) => row.cells.length === headings.length);
      return rows.map((row) => Object.fromEntries(headings.map((name, at) => [name, row.cells[at].textContent])));
    });
  }

  said() {
    return this.page.locator("#said");
  }

  // Until a table's rows are as `right` wants them.
  async until(table, right, what) {
    const end = Date.now() + PATIENCE;
    let rows;
    do {
      rows = await this.read(table);
      if (right(rows)) return rows;
      await this.asks();
    } while (Date.now() < end);
    return assert.fail(`${what}; ${table} says ${JSON.stringify(rows)}`);
  }

  // Until the page asks again. It does so only when it has shown what it heard before.
  asks() {
    return this.page.waitForRequest((request) => request.url().endsWith("/v1/registry"));
  }

  // Until the page has shown an answer to a question that it asks after now.
  async shown() {
    await this.asks();
    await this.asks();
  }

  async load(name, directory, inPlace = false) {
    await this.fill(name, directory, inPlace);
    await this.press();
  }

  async fill(name, directory, inPlace = false) {
    const { page } = this;
    await page.getByLabel("name", { exact: true }).fill(name);
    await page.getByLabel("directory", { exact: true }).fill(directory);
    await page.getByRole("checkbox").setChecked(inPlace);
  }

  press() {
    return this.page.getByRole("button", { name: "Load", exact: true }).click();
  }

  unload(name) {
    return this.page.getByRole("button", { name: `Unload ${name}`, exact: true });
  }

  // How far text stands out from what is behind it, the least of all text that is seen: 4.5 is what WCAG asks for.
  faintest() {
    return this.page.evaluate(() => {
      const draw = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      const pixel = (...colours) => {
        draw.clearRect(0, 0, 1, 1);
        for (const colour of colours) { draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1); }
        return [...draw.getImageData(0, 0, 1, 1).data];
      };
      const light = ([r, g, b]) => [[r, 0.2126], [g, 0.7152], [b, 0.0722]].reduce((sum, [value, part]) => {
        const v = value / 255;
        return sum + part * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      }, 0);
      const probe = document.createElement("i");
      probe.style.color = "Canvas";
      document.body.append(probe);
      const canvas = getComputedStyle(probe).color;
      probe.remove();
      const seen = [];
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style, noscript")) continue;
        const above = [];
        for (let at = element; at; at = at.parentElement) above.unshift(at);
        const behind = above.map((one) => getComputedStyle(one).backgroundColor);
        const through = above.reduce((all, one) => all * getComputedStyle(one).opacity, 1);
        const back = pixel(canvas, ...behind);
        const ink = pixel(canvas, ...behind, getComputedStyle(element).color);
        const front = ink.map((value, at) => value * through + back[at] * (1 - through));
        const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
        seen.push({ ratio: (high + 0.05) / (low + 0.05), text: walk.currentNode.data.trim() });
      }
      for (const input of document.querySelectorAll("input[placeholder]")) {
        const back = pixel(canvas, getComputedStyle(input).backgroundColor);
        const ink = pixel(getComputedStyle(input, "::placeholder").color);
        const [high, low] = [light(ink), light(back)].sort((a, b) => b - a);
        seen.push({ ratio: (high + 0.05) / (low + 0.05), text: input.placeholder });
      }
      return seen.reduce((least, one) => one.ratio < least.ratio ? one : least);
    });
  }
}
