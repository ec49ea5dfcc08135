// The types of what the dashboard uses of Preact, its hooks, its signals and htm.

export type Key = string | number;
export type Child = VNode | string | number | bigint | boolean | null | undefined | ReadonlySignal<any> | Child[];
export interface VNode<P = any> {
  type: string | Component<P>;
  props: P;
  key: any;
}
export type Component<P = any> = (props: P) => Child;
export interface Context<T> {
  Provider: Component<{ value: T; children?: Child }>;
}

export function h(type: string | Component, props: object | null, ...children: Child[]): VNode;
export function render(vnode: Child, parent: Element | DocumentFragment): void;
export const Fragment: Component<{ children?: Child }>;
export function createContext<T>(initial: T): Context<T>;

export type StateUpdater<S> = (value: S | ((before: S) => S)) => void;
export function useState<S>(initial: S | (() => S)): [S, StateUpdater<S>];
export function useReducer<S, A>(reducer: (state: S, action: A) => S, initial: S): [S, (action: A) => void];
export function useEffect(run: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useLayoutEffect(run: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useRef<T>(initial: T): { current: T };
export function useRef<T>(initial: T | null): { current: T | null };
export function useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
export function useCallback<T>(callback: T, inputs: readonly unknown[]): T;
export function useContext<T>(context: Context<T>): T;
export function useId(): string;
export function useErrorBoundary(told?: (error: Error) => void): [Error | undefined, () => void];

export interface ReadonlySignal<T> {
  readonly value: T;
  peek(): T;
  subscribe(run: (value: T) => void): () => void;
}
export interface Signal<T> extends ReadonlySignal<T> {
  value: T;
}
export function signal<T>(value: T): Signal<T>;
export function computed<T>(make: () => T): ReadonlySignal<T>;
export function effect(run: () => void | (() => void)): () => void;
export function batch<T>(run: () => T): T;
export function untracked<T>(run: () => T): T;
export function useSignal<T>(value: T): Signal<T>;
export function useComputed<T>(make: () => T): ReadonlySignal<T>;
export function useSignalEffect(run: () => void | (() => void)): void;

export const htm: { bind(make: typeof h): (strings: TemplateStringsArray, ...values: any[]) => VNode };
