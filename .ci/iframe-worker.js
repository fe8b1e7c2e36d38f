// Browsers refuse `new Worker` to a page opened from a folder; the search then runs in a hidden frame of the same page.
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement('iframe');
    frame.hidden = true;
    document.body.append(frame);
    const inside = frame.contentWindow, script = inside.document.createElement('script');
    inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }));
    this.ready = new Promise(done => { script.onload = done; });
    this.inside = inside;
    script.src = url;
    inside.document.body.append(script);
  }
  postMessage(data) { this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', { data }))); }
  terminate() {}
};
