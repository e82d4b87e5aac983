"""Stands in for the chat page: a login screen, an API that wants a login, a WebSocket that says back what it hears."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers["Upgrade"] == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            while word := self.rfile.read(4):
                self.wfile.write(word)
            return
        # Who asks, as the page is told.
        text = f"log in, {self.headers['X-Forwarded-For']}\n".encode()
        self.send_response(401 if self.path.startswith("/api/") else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


ThreadingHTTPServer(("127.0.0.1", 8080), Page).serve_forever()
