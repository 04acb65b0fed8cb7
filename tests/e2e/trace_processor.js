// Perfetto's trace processor in a pipe: node trace_processor.js FOLDER. Requests (TraceProcessorRpcStream) come from standard input,
// answers go to standard output. FOLDER holds the WebAssembly of Perfetto's UI; its engine is written for a browser's worker, so
// it is shown what it asks for: the globals of a worker, and files read through XMLHttpRequest.
'use strict';
const fs = require('fs');
const path = require('path');
const folder = process.argv[2];

function answer(bytes) {
  for (let done = 0; done < bytes.length;) done += fs.writeSync(1, bytes, done);
}

globalThis.self = globalThis;
globalThis.location = {href: 'file:///'};
globalThis.WorkerGlobalScope = class {};
globalThis.XMLHttpRequest = class {
  open(method, url) { this.url = url; }
  send() {
    const file = fs.readFileSync(path.join(folder, path.basename(this.url)));
    this.response = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
    this.status = 200;
  }
};
process.type = 'renderer';  // or the engine says that it was not built for node
console.log = console.warn = () => {};

const port = {postMessage: answer};
require(path.join(folder, 'engine_bundle.js'));
self.onmessage({data: port});
// The engine gets its memory in callbacks that were queued before this one.
setTimeout(() => process.stdin.on('data', (chunk) => port.onmessage({data: new Uint8Array(chunk)})), 0);
