// Making elements and writing numbers. Text is only ever set as text: names come from callers.

const SVG = "http://www.w3.org/2000/svg";

export const NUM_COLOURS = 12;

/** Make an HTML element with attributes, and text or children. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Make an SVG element with attributes, and text or children. */
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Set an attribute if it differs: an unchanged one must not cost the browser a new style. */
export function set(element, key, value) {
  const text = String(value);
  if (element.getAttribute(key) !== text) element.setAttribute(key, text);
}

/** Set an element's text if it differs. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (number) => Math.round(number).toLocaleString("en-US");

export const blocks = (number) => `${count(number)} ${number === 1 ? "block" : "blocks"}`;

/** Write a duration with a unit and two or three digits. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0";
  if (seconds < 1e-3) return `${digits(seconds * 1e6)} µs`;
  if (seconds < 1) return `${digits(seconds * 1e3)} ms`;
  if (seconds < 120) return `${digits(seconds)} s`;
  return seconds < 7200 ? `${digits(seconds / 60)} min` : `${digits(seconds / 3600)} h`;
}

/** Write a number short. */
export function short(number) {
  if (number >= 1e6) return `${digits(number / 1e6)}M`;
  if (number >= 1e4) return `${digits(number / 1e3)}k`;
  return number >= 100 || Number.isInteger(number) ? count(number) : digits(number);
}

const digits = (number) => (number >= 100 ? number.toFixed(0) : String(+number.toPrecision(2)));

/** Give a request's colour class: those that came one after the other differ. */
export const colour = (number) => `c${number % NUM_COLOURS}`;
