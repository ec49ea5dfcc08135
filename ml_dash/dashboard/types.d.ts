// The answers of the REST calls that the dashboard reads, and what screens are given.

export type Status = "running" | "completed" | "failed" | "interrupted";

/** Why a run is in its state: an exception, a signal, an exit code, silence. */
export interface Reason {
  kind: string;
  text?: string;
  type?: string;
  signal?: string;
  code?: number;
  at?: string;
}

export interface Counts {
  events: number;
  points?: number;
  logs?: number;
  files?: number;
  metrics?: number;
  [name: string]: number | undefined;
}

/** An experiment as lists have it (`GET /experiments`). */
export interface Run {
  id: string;
  name: string;
  title: string | null;
  project: string;
  status: Status;
  reason: Reason | null;
  description: string | null;
  notes: string | null;
  tags: string[] | null;
  folder: string | null;
  archived: boolean;
  createdAt: string;
  updatedAt: string;
  endedAt: string | null;
  heardAt: string | null;
  counts: Counts;
  values: Record<string, unknown>;
}

/** The document of one experiment (`GET /experiments/{id}`). */
export interface ExperimentRecord extends Run {
  names: string[];
  metadata: Record<string, unknown>;
  writeProtected: boolean;
  writers: Writer[];
  writersTotal: number;
  uploads?: Upload[];
  [name: string]: unknown;
}

/** What a server has acknowledged of a run on this machine. */
export interface Upload {
  remote: string;
  user: string | null;
  acknowledged: number;
  waitingFiles: number;
  complete: boolean;
  reason: string | null;
}

export interface Writer {
  id: string;
  host?: string;
  pid?: number;
  startedAt?: string;
  endedAt?: string | null;
  status?: string;
  commit?: string | null;
  branch?: string | null;
  script?: string | null;
  [name: string]: unknown;
}

export interface RunsPage {
  experiments: Run[];
  total: number;
  next: string | null;
  startIndex: number;
}

export interface Field {
  name: string;
  kind: "number" | "text" | "boolean" | "time" | "mixed";
  runs: number;
  values: string[];
}

export interface Spread {
  mean: number;
  sd: number;
  min: number;
  max: number;
  count: number;
}

export interface Group {
  value: unknown;
  runs: number;
  values: Record<string, Spread | null>;
}

export interface Project {
  name: string;
  experiments: number;
  running: number;
  createdAt: string;
  updatedAt: string;
}

export interface NonFinite {
  x: number;
  value: "NaN" | "Infinity" | "-Infinity";
}

/** One line of a chart: an entry is a bucket of points, with equal `min` and `max` where it is one point. */
export interface Series {
  experiment: string;
  split: unknown;
  index: ArrayLike<number>;
  x: ArrayLike<number>;
  min: ArrayLike<number>;
  max: ArrayLike<number>;
  shown: number;
  total: number;
  superseded: number | unknown;
  nonFinite: NonFinite[];
  breaks: number[];
  xMeant?: string;
}

export interface SeriesAnswer {
  metric: string;
  x: string;
  series: Series[];
  missing: string[];
  /** Where an index of the points is still being made: how many it has, of how many. */
  indexed?: number;
  ofPoints?: number;
}

export interface Metric {
  name: string;
  totalPoints?: number;
  [name: string]: unknown;
}

export interface LogEntry {
  timestamp: string;
  level: string;
  message: string;
  metadata: Record<string, unknown> | null;
  sequenceNumber: number;
}

export interface FileEntry {
  id: string;
  path: string;
  filename: string;
  sizeBytes: number;
  checksum: string;
  contentType: string | null;
  tags: string[];
  [name: string]: unknown;
}

/** An entry of the timeline (`GET /experiments/{id}/history`). */
export interface Mark {
  event: number;
  time: string;
  kind: string;
  writer: string | null;
  host: string | null;
  text: string;
  data: Record<string, unknown> | null;
}

export interface History {
  marks: Mark[];
  total: number;
  events: number;
  firstAt: string | null;
  lastAt: string | null;
}

export interface Storage {
  projects: { name: string; experiments: number; bytes: number; freeableBytes: number }[];
  totalBytes: number;
  uploader: { state: string; text: string } | null;
  parked: { experiment: string; reason: string; since: string }[];
  lastVerify: { at: string; result: string } | null;
  quota: { used: number; limit: number } | null;
}

export interface Me {
  user: string;
  namespace: string;
  namespaces?: string[];
  mode: "server" | "local";
  readOnly: boolean;
  can: { edit: boolean; remove: boolean; archive: boolean };
  version: string;
  stores?: string[];
}

/** What a screen is given: the parts of the path, and the parameters of the URL. */
export interface ScreenProps {
  parts: string[];
  params: Record<string, string>;
}

/** What a chart shows, for tests and scripts: `window.mlDash.chart(NAME)`. */
export interface DrawnRun {
  run: string;
  x: ArrayLike<number>;
  min: ArrayLike<number>;
  max: ArrayLike<number>;
  shown: number;
  total: number;
}

declare global {
  interface Window {
    mlDash: {
      chart(name: string): { runs: DrawnRun[] } | undefined;
      [more: string]: unknown;
    };
  }
}
