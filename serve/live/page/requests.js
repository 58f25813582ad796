// The table of requests; the one under the pointer or the keyboard's focus stands out everywhere.

import { blocks, colour, count, duration, make, say, set } from "./dom.js";

export class Requests {
  /** @param onFocus called with a request's number, or null */
  constructor(body, onFocus) {
    this.body = body;
    this.onFocus = onFocus;
    this.rows = new Map();
    const numberOf = (event) => {
      const row = event.target.closest?.("tr[data-request]");
      return row ? Number(row.getAttribute("data-request")) : null;
    };
    for (const name of ["pointerover", "focusin"]) {
      body.addEventListener(name, (event) => onFocus(numberOf(event)));
    }
    for (const name of ["pointerleave", "focusout"]) {
      body.addEventListener(name, () => onFocus(null));
    }
    body.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Go from row to row with the arrow keys, as in any list. */
  onKey(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("tr")?.[step];
    if (event.key === "Escape") event.target.blur();
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  show(requests) {
    const there = new Set(requests.map((request) => request.number));
    for (const [number, row] of this.rows) {
      if (there.has(number)) continue;
      if (row.contains(document.activeElement)) this.onFocus(null);
      row.remove();
      this.rows.delete(number);
    }
    for (const request of requests) {
      // They come in the order of their numbers, so a new one belongs at the end, but for those
      // that were not listed before.
      const row = this.rows.get(request.number) ?? this.begin(request);
      showRow(row, request);
    }
  }

  begin(request) {
    const name = make("span", { class: "id" });
    const caller = make("span", { class: "caller" });
    const row = make(
      "tr",
      { tabindex: 0, "data-request": request.number },
      make("td", {}, make("span", { class: `swatch ${colour(request.number)}` }), name, caller),
      ...Array.from({ length: 4 }, () => make("td", { class: "number" })),
    );
    this.rows.set(request.number, row);
    const after = [...this.body.children].find(
      (other) => Number(other.getAttribute("data-request")) > request.number,
    );
    this.body.insertBefore(row, after ?? null);
    return row;
  }

  highlight(number) {
    for (const [other, row] of this.rows) row.classList.toggle("on", other === number);
  }
}

function showRow(row, request) {
  const [who, tokens, places, home, age] = row.children;
  const [, name, caller] = who.children;
  say(name, request.request_id);
  set(name, "title", request.request_id);
  say(caller, request.caller);
  set(row, "data-activity", request.activity);
  say(tokens, `${count(request.num_prompt_tokens)} + ${count(request.num_tokens)}`);
  const total = request.blocks.reduce((sum, [, number]) => sum + number, 0);
  const waits = request.activity === "waiting";
  say(places, waits ? "waiting" : `${count(total)} on ${request.blocks.length}`);
  say(home, request.home === null ? "" : String(request.home));
  say(age, duration(request.age_s));
}

/** Say everything about one request in a line. */
export function inWords(request) {
  const total = request.blocks.reduce((sum, [, number]) => sum + number, 0);
  const places = request.blocks.map(([instance, number]) => `${count(number)} on instance ${instance}`);
  return [
    request.request_id,
    total ? `${blocks(total)}: ${places.join(", ")}` : "waits, holds no block",
    `${count(request.num_prompt_tokens)} prompt + ${count(request.num_tokens)} generated tokens`,
  ].join("  ·  ");
}
