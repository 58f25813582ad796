// Instances as columns of blocks coloured by request, and debts as arrows below them.

import { blocks, colour, count, draw, say, set } from "./dom.js";

const COLUMN_HEIGHT = 236;
const TOP = 6;
const LABELS = 40;
const ARROWS = 96;
const LEAST_PITCH = 30;
const LEAST_CELL = 7;
const MOST_COLUMN = 96;
const MOST_CELLS = 6000;
const MOST_ARROWS = 40;
const LABEL_SPOTS = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8];

export class Pools {
  /** @param onFocus called with a request's number, or null, when the pointer is over its blocks */
  constructor(place, onFocus) {
    this.place = place;
    this.columns = [];
    this.cells = draw("g");
    this.arrows = draw("g", { class: "debts" });
    const tip = draw("marker", {
      id: "tip", viewBox: "0 0 8 8", refX: 6.5, refY: 4, orient: "auto",
      markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse",
    }, draw("path", { d: "M0 0 8 4 0 8z", class: "tip" }));
    this.svg = draw("svg", { role: "img" }, draw("defs", {}, tip), this.cells, this.arrows);
    this.place.append(this.svg);
    this.svg.addEventListener("pointerover", (event) => {
      const number = event.target.getAttribute?.("data-request");
      onFocus(number ? Number(number) : null);
    });
    this.svg.addEventListener("pointerleave", () => onFocus(null));
    this.shape = "";
  }

  /** Draw a view; elements are made when the shape changes, and recoloured otherwise. */
  show(view) {
    const total = Math.max(...view.instances.map((one) => one.total));
    const layout = layoutOf(view.instances.length, total, this.place.clientWidth);
    if (layout.shape !== this.shape) this.build(layout, view.instances.length);
    view.instances.forEach((one, instance) => this.showInstance(view, one, instance, layout));
    this.showDebts(view.debts, layout);
    set(this.svg, "aria-label", inWords(view));
    return layout.group;
  }

  build(layout, number) {
    this.shape = layout.shape;
    set(this.svg, "width", layout.width);
    set(this.svg, "height", layout.height);
    this.cells.replaceChildren();
    this.columns = Array.from({ length: number }, (_, instance) => {
      const x = layout.centre(instance) - layout.column / 2;
      const column = draw("g", { class: "instance", "data-instance": instance });
      const cells = Array.from({ length: layout.cells }, (_, index) => {
        const row = Math.floor(index / layout.perRow);
        return draw("rect", {
          x: x + (index % layout.perRow) * layout.cellWidth,
          y: layout.bottom - (row + 1) * layout.cellHeight,
          width: layout.cellWidth - layout.gap,
          height: layout.cellHeight - layout.gap,
          rx: Math.min(2.5, layout.cellHeight / 5),
          class: "cell free",
        });
      });
      const middle = { x: layout.centre(instance), "text-anchor": "middle" };
      const y = layout.bottom + 15;
      const name = draw("text", { ...middle, y, class: "name" },
        layout.pitch < 76 ? String(instance) : `instance ${instance}`);
      const used = draw("text", { ...middle, y: y + 14, class: "used" });
      column.append(...cells, name, used);
      this.cells.append(column);
      return { cells, used, column };
    });
  }

  showInstance(view, one, instance, layout) {
    const { cells, used, column } = this.columns[instance];
    const owners = ownersOf(view, one, instance, layout);
    cells.forEach((cell, index) => {
      const owner = owners[index];
      set(cell, "visibility", owner === undefined ? "hidden" : "visible");
      if (typeof owner === "number") {
        set(cell, "class", `cell ${colour(owner)}${cell.classList.contains("on") &&
          cell.getAttribute("data-request") === String(owner) ? " on" : ""}`);
        set(cell, "data-request", owner);
      } else {
        set(cell, "class", `cell ${owner ?? "free"}`);
        cell.removeAttribute("data-request");
      }
    });
    const taken = one.total - one.free;
    say(used, layout.pitch < 52 ? "" : `${count(taken)} / ${count(one.total)}`);
    set(column, "class", one.free ? "instance" : "instance full");
  }

  showDebts(debts, layout) {
    const shown = debts.slice(0, MOST_ARROWS);
    const most = Math.max(1, ...shown.map((debt) => debt.num_blocks));
    const base = layout.bottom + LABELS;
    const taken = [];
    const wanted = shown.map((debt) => {
      const { creditor, debtor, num_blocks } = debt;
      const spread = Math.min(8, layout.pitch / 6) * (creditor < debtor ? 1 : -1);
      const from = layout.centre(creditor) + spread;
      const to = layout.centre(debtor) - spread;
      const reach = Math.abs(creditor - debtor) / Math.max(1, this.columns.length - 1);
      // Lent to the right hangs a little lower, so that both ways of a circle are seen.
      const depth = 16 + 56 * reach + (creditor < debtor ? 14 : 0);
      const low = base + depth * 1.33;
      const label = count(num_blocks);
      return {
        d: `M${from} ${base} C${from} ${low} ${to} ${low} ${to} ${base + 3}`,
        width: 1.2 + 3.8 * (num_blocks / most),
        debt,
        label,
        spot: freeSpot(taken, { from, to, base, low }, 8 + 7 * label.length),
      };
    });
    while (this.arrows.childElementCount > wanted.length) this.arrows.lastChild.remove();
    while (this.arrows.childElementCount < wanted.length) {
      const line = draw("path", { class: "debt", "marker-end": "url(#tip)" }, draw("title"));
      this.arrows.append(draw("g", {}, line, draw("text", { "text-anchor": "middle" })));
    }
    wanted.forEach(({ d, width, spot, label, debt }, index) => {
      const [line, text] = this.arrows.children[index].children;
      set(line, "d", d);
      set(line, "stroke-width", width.toFixed(1));
      set(line, "data-creditor", debt.creditor);
      set(line, "data-debtor", debt.debtor);
      say(line.firstChild, debtInWords(debt));
      set(text, "x", spot?.x ?? 0);
      set(text, "y", (spot?.y ?? 0) + 3.5);
      say(text, spot ? label : "");
    });
  }

  /** Let one request stand out on all instances, with the debts it has a part in; null for none. */
  highlight(request) {
    this.svg.classList.toggle("focused", request !== null);
    for (const one of this.svg.querySelectorAll(".on")) one.classList.remove("on");
    if (request === null) return;
    for (const cell of this.svg.querySelectorAll(`.cell[data-request="${request.number}"]`)) {
      cell.classList.add("on");
    }
    for (const [instance] of request.blocks) {
      const ends = `[data-creditor="${instance}"][data-debtor="${request.home}"]`;
      this.svg.querySelector(`.debt${ends}`)?.classList.add("on");
    }
  }
}

/** Find a place for a label on a curve where no other is; null where there is none. */
function freeSpot(taken, { from, to, base, low }, width) {
  for (const t of LABEL_SPOTS) {
    const x = from + (to - from) * t * t * (3 - 2 * t);
    const y = base + 3 * t * (1 - t) * (low - base);
    const isFree = taken.every(
      (other) => Math.abs(other.x - x) > (other.width + width) / 2 || Math.abs(other.y - y) > 12,
    );
    if (!isFree) continue;
    taken.push({ x, y, width });
    return { x, y };
  }
  return null;
}

/** Choose how many blocks a cell stands for, and the cells' size: as large and square as can be. */
export function layoutOf(number, total, room) {
  const pitch = Math.max(LEAST_PITCH, Math.floor(room / number));
  const column = Math.min(MOST_COLUMN, Math.floor(pitch * 0.78));
  const fit = Math.floor(column / LEAST_CELL) * Math.floor(COLUMN_HEIGHT / LEAST_CELL);
  const most = Math.max(20, Math.min(fit, Math.floor(MOST_CELLS / number)));
  const group = Math.ceil(total / most);
  const cells = Math.ceil(total / group);
  let perRow = 1;
  const size = (columns) =>
    Math.min(column / columns, COLUMN_HEIGHT / Math.ceil(cells / columns));
  for (let columns = 2; columns <= Math.floor(column / 5); columns += 1) {
    if (size(columns) > size(perRow)) perRow = columns;
  }
  // Rows that are all full look better, if the cells are not much smaller for it.
  for (let columns = 1; cells % perRow && columns < cells; columns += 1) {
    if (cells % columns === 0 && size(columns) > 0.8 * size(perRow)) perRow = columns;
  }
  const cellHeight = Math.min(30, COLUMN_HEIGHT / Math.ceil(cells / perRow));
  const cellWidth = column / perRow;
  const width = pitch * number;
  const bottom = TOP + cellHeight * Math.ceil(cells / perRow);
  return {
    pitch, column, group, cells, perRow, cellHeight, cellWidth, width, bottom,
    gap: Math.min(cellHeight, cellWidth) > 9 ? 2 : 1,
    height: bottom + LABELS + ARROWS,
    centre: (instance) => (instance + 0.5) * pitch,
    shape: [number, pitch, cells, perRow].join(),
  };
}

/** List who has most of the blocks of each cell: a request's number, "other", "reserved", "free". */
export function ownersOf(view, one, instance, layout) {
  const runs = view.requests.map(({ number, blocks: places }) => [
    number,
    places.find(([at]) => at === instance)?.[1] ?? 0,
  ]);
  runs.push(["other", one.other], ["reserved", one.reserved], ["free", one.free]);
  const cells = Math.ceil(one.total / layout.group);
  const best = Array.from({ length: cells }, () => ["free", 0]);
  let at = 0;
  for (const [owner, size] of runs) {
    const end = Math.min(at + size, one.total);
    for (let cell = Math.floor(at / layout.group); cell * layout.group < end; cell += 1) {
      const first = Math.max(at, cell * layout.group);
      const share = Math.min(end, (cell + 1) * layout.group) - first;
      if (share > best[cell][1]) best[cell] = [owner, share];
    }
    at = end;
  }
  return best.map(([owner]) => owner);
}

const debtInWords = ({ creditor, debtor, num_blocks }) =>
  `instance ${creditor} has lent ${blocks(num_blocks)} to instance ${debtor}`;

function inWords(view) {
  const pools = view.instances.map(
    (one, instance) => `instance ${instance}: ${count(one.total - one.free)} of ${blocks(one.total)} used`,
  );
  return [...pools, ...view.debts.map(debtInWords)].join("; ");
}
