// The stream of views: read, and begun again when it breaks.

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 15;
const SILENCE_S = 10;

/**
 * Follow the server until stopped.
 *
 * EventSource cannot send a key, so the events are read from a fetch.
 *
 * @param {object} reader
 *   interval(): seconds; key(): API key or null; onView(view);
 *   onState(state, text): "connecting", "live" or "lost"; onRefused(text): a key is needed.
 */
export class Stream {
  constructor(reader) {
    this.reader = reader;
    this.abort = null;
    this.timer = null;
    this.wait = FIRST_WAIT_S;
  }

  /** Begin, or begin again with another key or interval. */
  start() {
    this.stop();
    this.wait = FIRST_WAIT_S;
    this.run();
  }

  stop() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = null;
  }

  async run() {
    const abort = new AbortController();
    this.abort = abort;
    let why = "the server has closed the stream";
    try {
      const interval = this.reader.interval();
      const key = this.reader.key();
      const answer = await fetch(`live?interval=${interval}`, {
        headers: key === null ? {} : { authorization: `Bearer ${key}` },
        signal: abort.signal,
        cache: "no-store",
        credentials: "omit",
      });
      if (answer.status === 401 || answer.status === 403) {
        this.reader.onRefused(await reason(answer));
        return;
      }
      if (!answer.ok) throw new Error(await reason(answer));
      await this.read(answer.body, abort, Math.max(SILENCE_S, 3 * interval));
    } catch (error) {
      why = error instanceof TypeError ? "the server cannot be reached" : error.message;
    }
    // Stopped, or begun again: not ours to say.
    if (this.abort === abort) this.again(why);
  }

  async read(body, abort, silence) {
    const chunks = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let timer = null;
    try {
      while (true) {
        timer = setTimeout(() => abort.abort(new Error("the server is silent")), silence * 1000);
        const { done, value } = await chunks.read();
        clearTimeout(timer);
        if (done) return;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          if (event.startsWith("data: ") && this.abort === abort) {
            this.wait = FIRST_WAIT_S;
            this.reader.onState("live", "live");
            this.reader.onView(JSON.parse(event.slice("data: ".length)));
          }
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }

  again(why) {
    const wait = this.wait * (1 + Math.random() / 2);
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_S);
    this.reader.onState("lost", `${why}, next try in ${Math.ceil(wait)} s`);
    this.timer = setTimeout(() => this.run(), wait * 1000);
  }
}

/** Read the text of an error's body. */
async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}
