"""Stands in for the chat page: a login screen, an API that wants a login, a WebSocket that says back what it hears."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TAKEN = [0]


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
        if self.path == "/taken":  # how many bytes of bodies it was given
            self.says(200, str(TAKEN[0]))
            return
        # Who asks, as the page is told.
        inside = self.headers["Authorization"] == "Bearer a-login"
        status = 200 if inside or not self.path.startswith("/api/") else 401
        self.says(status, f"log in, {self.headers['X-Forwarded-For']}, {self.headers['Host']}\n")

    def do_POST(self):
        """It takes the whole body first, as the real page does."""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                TAKEN[0] += len(self.rfile.read(size + 2)) - 2
            self.rfile.readline()
        else:
            TAKEN[0] += len(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        self.do_GET()

    def says(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


ThreadingHTTPServer(("127.0.0.1", 8080), Page).serve_forever()
