// The localisation page: which boxes and events the thresholds leave, and what is drawn at the player's time.
"use strict";

const TINY = 1e-6; // evidence must at least speak for the class

const embedded = (id) => JSON.parse(document.getElementById(id).textContent);

function mediaUrl(index) {
  const text = atob(document.getElementById(`media-${index}`).textContent);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  return bytes.length ? URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })) : null;
}

function clock(seconds, step = 0.1) {
  const digits = step < 1 ? 1 : 0;
  const whole = (Math.round(seconds * 10 ** digits) / 10 ** digits);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const tail = s.toFixed(digits).padStart(digits ? 4 : 2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${tail}` : `${m}:${tail}`;
}

// Overlapping spans as tiles: of each span the part that is nearest to its own middle.
function tiles(spans) {
  const middles = spans.map(([start, end]) => (start + end) / 2);
  return spans.map(([start, end], i) => [
    i ? Math.max(start, (middles[i - 1] + middles[i]) / 2) : start,
    i + 1 < spans.length ? Math.min(end, (middles[i] + middles[i + 1]) / 2) : end,
  ]);
}

// Of every frame its best region: regions lie by time, then best first.
const bestByFrame = (regions) => regions.filter((region, i) => !i || regions[i - 1].time !== region.time);

function instances(video, entry, modality) {
  const length = video.video.seconds, half = 1 / video.sampling.fps;
  if (modality === "visual") {
    const best = bestByFrame(entry.regions);
    const spans = tiles(best.map((r) => [r.time - half, r.time + half]));
    return best.map((r, i) => ({
      start: Math.max(0, spans[i][0]), end: Math.min(length, spans[i][1]), at: r.time, score: r.score, box: r.box,
    }));
  }
  const spans = tiles(entry.segments.map((s) => [s.start, s.end]));
  return entry.segments.map((s, i) => ({
    start: spans[i][0], end: spans[i][1], at: (s.start + s.end) / 2, score: s.score, box: null,
  }));
}

const least = (entry, modality, strictness) => Math.max(entry.view_thresholds[modality] + strictness, TINY);

// Whether the bag that an instance was scored in holds the class.
function bagHolds(video, index, time, strictness) {
  const windows = video.windows;
  let nearest = 0;
  for (let i = 1; i < windows.length; i++) {
    const away = (w) => Math.abs((w.start + w.end) / 2 - time);
    if (away(windows[i]) < away(windows[nearest])) nearest = i;
  }
  return windows[nearest].scores[index] >= video.classes[index].threshold + strictness;
}

// The same rule as avfast/findings.py, for any strictness: runs of instances that reach the threshold.
function events(video, index, strictness) {
  const entry = video.classes[index], found = [];
  if (strictness === 0) return entry.events;
  for (const modality of Object.keys(entry.view_thresholds)) {
    let run = null;
    for (const one of instances(video, entry, modality)) {
      const active = one.score >= least(entry, modality, strictness) && bagHolds(video, index, one.at, strictness);
      if (!active) { run = null; continue; }
      if (!run) found.push((run = { modality, start: one.start, end: one.end, peak: one.at, score: one.score, box: one.box }));
      run.end = one.end;
      if (one.score > run.score) Object.assign(run, { peak: one.at, score: one.score, box: one.box });
    }
  }
  return found.sort((a, b) => a.start - b.start);
}

document.addEventListener("alpine:init", () => {
  Alpine.data("player", () => ({
    videos: embedded("data"),
    index: 0,
    time: 0,
    playing: false,
    muted: false,
    strictness: 0,
    switched: {},
    showAbsent: false,
    width: 600, // pixels, of the timeline

    init() {
      this.choose(0);
      const follow = () => { this.time = this.$refs.media.currentTime; requestAnimationFrame(follow); };
      requestAnimationFrame(follow);
      for (const redraw of ["strictness", "shown", "index"]) this.$watch(redraw, () => this.$nextTick(() => this.draw()));
      new ResizeObserver(() => { this.width = this.$refs.timeline.clientWidth; this.draw(); }).observe(this.$refs.timeline);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    },

    get video() { return this.videos[this.index]; },
    get seconds() { return Math.max(this.video.video.seconds, 0.1); },
    get modalities() { return Object.keys(this.video.classes[0]?.view_thresholds ?? {}); },

    choose(index) {
      this.index = Number(index);
      this.time = 0;
      this.switched = Object.fromEntries(this.video.classes.map((entry) => [entry.name, entry.present]));
      this.showAbsent = !this.video.classes.some((entry) => entry.present);
      const url = mediaUrl(this.index), media = this.$refs.media;
      if (media.src) URL.revokeObjectURL(media.src);
      if (url) media.src = url; else media.removeAttribute("src");
    },

    // Classes with their position, the present ones first.
    get listed() {
      const all = this.video.classes.map((entry, index) => ({ ...entry, index, holds: this.holds(index) }));
      return all.filter((entry) => entry.holds || this.showAbsent).sort((a, b) => b.holds - a.holds || b.score - a.score);
    },
    get shown() { return this.listed.filter((entry) => this.switched[entry.name]); },
    holds(index) {
      const least = this.video.classes[index].threshold + this.strictness;
      return this.video.windows.some((window) => window.scores[index] >= least);
    },

    get range() {
      const gaps = this.video.windows.flatMap((window) => window.scores.map((score, c) => score - this.video.classes[c].threshold));
      const reach = Math.max(0.1, ...gaps.map(Math.abs));
      return Math.ceil(reach * 10) / 10;
    },
    get rows() {
      return this.shown.flatMap((entry) => this.modalities.map((modality, i) => ({ entry, modality, first: i === 0 })));
    },
    get events() {
      return this.shown.flatMap((entry) => events(this.video, entry.index, this.strictness)
        .map((event) => ({ ...event, name: entry.name, colour: entry.colour }))).sort((a, b) => a.start - b.start);
    },

    // The boxes of the sampled frame that is nearest to the player's time.
    get boxes() {
      const { frame_times: times, width, height } = this.video.video;
      if (!times.length) return [];
      const nearest = times.reduce((a, b) => (Math.abs(b - this.time) < Math.abs(a - this.time) ? b : a));
      if (Math.abs(nearest - this.time) > 1 / this.video.sampling.fps) return [];
      return this.shown.flatMap((entry) => entry.regions
        .filter((r) => r.time === nearest && r.score >= least(entry, "visual", this.strictness) && bagHolds(this.video, entry.index, r.time, this.strictness))
        .map((r) => ({
          key: `${entry.index} ${r.box}`,
          label: `${entry.name} ${r.score.toFixed(2)}`,
          upper: r.box[1] > 0.08 * height,
          style: { left: `${(100 * r.box[0]) / width}%`, top: `${(100 * r.box[1]) / height}%`, width: `${(100 * (r.box[2] - r.box[0])) / width}%`, height: `${(100 * (r.box[3] - r.box[1])) / height}%`, borderColor: entry.colour },
          ink: { background: entry.colour, color: entry.text_colour },
        })));
    },

    get stageStyle() {
      const { width, height } = this.video.video;
      const ratio = width ? width / height : 16 / 4;
      return { aspectRatio: String(ratio), width: `min(100%, ${(65 * ratio).toFixed(2)}vh)` };
    },

    clock,
    seek(time) { this.$refs.media.currentTime = this.time = Math.min(Math.max(time, 0), this.seconds); },
    seekAt(event) {
      const box = event.currentTarget.getBoundingClientRect();
      this.seek(((event.clientX - box.left) / box.width) * this.seconds);
    },
    toggle() {
      const media = this.$refs.media;
      if (media.paused) media.play().catch(() => {}); else media.pause();
    },
    key(event) {
      if (event.target.matches("input, select, textarea, button") && event.key === " ") return;
      if (event.target.matches("input[type=range], select") || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = 1 / this.video.sampling.fps;
      const moves = { ArrowLeft: this.time - step, ArrowRight: this.time + step, Home: 0, End: this.seconds };
      if (event.key === " ") this.toggle();
      else if (event.key in moves) this.seek(moves[event.key]);
      else if (event.key === "m") this.muted = !this.muted;
      else return;
      event.preventDefault();
    },

    get ticks() {
      const room = Math.max(2, Math.floor(this.width / 90));
      const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
      const step = steps.find((s) => this.seconds / s <= room) ?? 14400;
      return Array.from({ length: Math.floor(this.seconds / step) + 1 }, (_, i) => ({ at: i * step, label: clock(i * step, step) }));
    },

    draw() {
      for (const canvas of this.$refs.timeline.querySelectorAll("canvas")) {
        this.drawRow(canvas, this.video.classes[canvas.dataset.index], Number(canvas.dataset.index), canvas.dataset.modality);
      }
    },
    drawRow(canvas, entry, index, modality) {
      const dense = window.devicePixelRatio || 1;
      const width = (canvas.width = canvas.clientWidth * dense), height = (canvas.height = canvas.clientHeight * dense);
      const context = canvas.getContext("2d"), scale = width / this.seconds;
      const found = instances(this.video, entry, modality), bar = least(entry, modality, 0);
      const spread = Math.max(bar, ...found.map((one) => one.score - bar), 1e-9);
      const paint = (from, to, top, tall) => context.fillRect(from * scale, top, Math.max((to - from) * scale, dense), tall);
      context.fillStyle = entry.colour;
      for (const one of found) {
        context.globalAlpha = Math.min(Math.max(0.35 + (0.65 * (one.score - bar)) / spread, 0), 1) * 0.55;
        if (one.score > 0) paint(one.start, one.end, 0, height);
      }
      context.globalAlpha = 1;
      for (const event of events(this.video, index, this.strictness)) {
        if (event.modality === modality) paint(event.start, event.end, height * 0.72, height * 0.28);
      }
    },
  }));
});
