"""The TensorBoard process of Monitor, with the Host header checked as on the page (tabs/server/hosts.py)."""

from typing import Any

from tabs.server.hosts import Hosts


def refuse_other_hosts(app: Any) -> Any:
    """Return WSGI middleware around `app` that refuses foreign Host headers, so that DNS rebinding cannot read logs."""
    hosts = Hosts()

    def answer(environ: Any, start_response: Any) -> Any:
        if hosts.admits(environ.get("HTTP_HOST", "")):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"TensorBoard does not answer under this name. Open it from Monitor."]

    return answer


def main() -> None:
    """Run TensorBoard with the Host header checked."""
    from absl import app
    from tensorboard import default, main_lib, program

    def server(wsgi: Any, flags: Any) -> Any:
        return program.create_port_scanning_werkzeug_server(refuse_other_hosts(wsgi), flags)

    main_lib.global_init()
    board = program.TensorBoard(plugins=default.get_plugins(), server_class=server)
    app.run(board.main, flags_parser=board.configure)


if __name__ == "__main__":
    main()
