"""What the Device needs of paho-mqtt, for its releases 1.6 and 2: one connection, made once and never again.

All that differs between the releases is in this file. The connection is driven by the Device's own loop, with paho's functions
for an external event loop, in one thread; paho's own loops, reconnecting and resending are not used.
"""

from __future__ import annotations

import ssl
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

from .errors import PahoError

try:
    import paho.mqtt.client as _paho  # type: ignore[import]
    from paho.mqtt import __version__ as _version
    from paho.mqtt.packettypes import PacketTypes as _PacketTypes  # type: ignore[import]
    from paho.mqtt.properties import Properties as _Properties  # type: ignore[import]
    from paho.mqtt.subscribeoptions import SubscribeOptions as _SubscribeOptions  # type: ignore[import]
except ImportError:
    raise PahoError("the Device needs paho-mqtt 1.6.1 or later; install mosquitto-bouncer-device[paho]") from None

KEEP_ALIVE = 30
SESSION_EXPIRY = 3600
_INBOUND_LIMIT = 1 << 18  # bytes of a packet from the broker

_V2 = hasattr(_paho, "CallbackAPIVersion")


class Connected(NamedTuple):
    code: int
    receive_maximum: int
    max_packet: Optional[int]


class Subscribed(NamedTuple):
    codes: Tuple[int, ...]


class Acknowledged(NamedTuple):
    mid: int
    code: int


class Message(NamedTuple):
    topic: str
    payload: bytes


class Disconnected(NamedTuple):
    code: int


Event = Union[Connected, Subscribed, Acknowledged, Message, Disconnected]


class ConnectionLost(Exception):
    """The connection has ended."""


class Abandoned(Exception):
    """The Device was closed while the connection was made."""


def _number(code: Any) -> int:
    """Returns a reason code as a number: paho has objects for them, and plain numbers for errors of its own."""
    return int(getattr(code, "value", code))


class _PahoOne(_paho.Client):  # type: ignore[misc]
    """paho 1.6 reads the reason code of a PUBACK and keeps it to itself. This keeps it for on_publish."""

    puback: Optional[Tuple[int, int]] = None

    def _handle_pubackcomp(self, cmd: Any) -> Any:
        packet = bytes(self._in_packet["packet"])
        if cmd == "PUBACK" and len(packet) >= 2:
            # Without a reason code it is 0x00: MQTT 5, 3.4.2.1.
            self.puback = int.from_bytes(packet[:2], "big"), packet[2] if len(packet) > 2 else 0
        try:
            return super()._handle_pubackcomp(cmd)
        finally:
            self.puback = None


def check() -> None:
    """Raises PahoError unless this release of paho tells the reason codes of PUBACK."""
    if _V2:
        return
    try:
        seen: List[Tuple[int, Any]] = []
        client = _new_client("check")
        client.on_publish = lambda client, userdata, mid: seen.append((mid, client.puback))
        message = _paho.MQTTMessage(7, b"check")
        message.qos = 1
        client._out_messages[7] = message
        client._in_packet = {"command": 0x40, "remaining_length": 3, "packet": bytearray(b"\x00\x07\x87")}
        client._packet_handle()
        if seen != [(7, (7, 0x87))]:
            raise PahoError(f"it does not tell the reason code of a PUBACK: {seen}")
    except Exception as error:
        raise PahoError(
            f"paho-mqtt {_version} cannot be used ({type(error).__name__}: {error}); this library was tested with 1.6.1"
        ) from None


def _new_client(client_id: str) -> Any:
    options = {"client_id": client_id, "protocol": _paho.MQTTv5, "reconnect_on_failure": False}
    if _V2:
        return _paho.Client(_paho.CallbackAPIVersion.VERSION2, **options)
    return _PahoOne(**options)


class Connection:
    """One connection. open is called by one thread; when it has returned, all else by another."""

    def __init__(self, client_id: str, host: str, port: int, tls: ssl.SSLContext) -> None:
        self._host, self._port = host, port
        self._events: List[Event] = []
        self.abandoned = False
        client = self._client = _new_client(client_id)
        client.tls_set_context(tls)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish_two if _V2 else self._on_publish_one

    def open(self) -> None:
        """Connects, TLS included, and sends CONNECT. Takes 5 s for TCP to each address and 30 s for TLS at most."""
        properties = _Properties(_PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY
        properties.MaximumPacketSize = _INBOUND_LIMIT
        self._client.connect(self._host, self._port, keepalive=KEEP_ALIVE, clean_start=False, properties=properties)

    @property
    def socket(self) -> Any:
        """The socket; None when the connection has ended."""
        return self._client.socket()

    def want_write(self) -> bool:
        return bool(self._client.want_write())

    def pending(self) -> bool:
        """Whether TLS has data that no selector shows."""
        sock = self.socket
        return sock is not None and hasattr(sock, "pending") and sock.pending() > 0

    def read(self) -> None:
        self._check(self._client.loop_read())

    def write(self) -> None:
        self._check(self._client.loop_write())

    def misc(self) -> None:
        """Keep-alive; to be called about once a second."""
        self._check(self._client.loop_misc())

    def events(self) -> List[Event]:
        """Returns what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def subscribe(self, topics: Sequence[str]) -> None:
        options = _SubscribeOptions(qos=1)
        code, _ = self._client.subscribe([(topic, options) for topic in topics])
        self._check(code)

    def publish(self, topic: str, message: bytes) -> int:
        """Sends a message at QoS 1, and returns its packet id."""
        info = self._client.publish(topic, message, qos=1, retain=False)
        self._check(info.rc)
        return int(info.mid)

    def disconnect(self) -> None:
        """Ends the connection in order, as far as the network allows at once."""
        try:
            if self.socket is not None:
                self._client.disconnect()
        except Exception:
            pass  # it is ended below in any case
        self.drop()

    def drop(self) -> None:
        """Ends the connection at once."""
        sock = self.socket
        if sock is not None:
            try:
                sock.close()
            except OSError:
                pass

    def dispose(self) -> None:
        """Ends the connection and gives back what it has, without waiting for the collector of cycles: each attempt has descriptors."""
        self.drop()
        client = self._client
        client.on_socket_open = client.on_connect = client.on_disconnect = None
        client.on_subscribe = client.on_message = client.on_publish = None
        for name in ("_sockpairR", "_sockpairW"):  # with which paho wakes a loop of its own
            sock = getattr(client, name, None)
            if sock is not None:
                sock.close()
                setattr(client, name, None)

    @staticmethod
    def _check(code: Any) -> None:
        if code != _paho.MQTT_ERR_SUCCESS:
            raise ConnectionLost(_paho.error_string(code))

    # Callbacks of paho. They only take notes: what they raise would pass through paho's code.

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        if self.abandoned:
            raise Abandoned  # before CONNECT is sent, which would end the connection of another process of this device

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any = None) -> None:
        receive_maximum = getattr(properties, "ReceiveMaximum", None) or 65535
        self._events.append(Connected(_number(code), receive_maximum, getattr(properties, "MaximumPacketSize", None)))

    def _on_disconnect(self, *arguments: Any) -> None:
        # paho 1.6: client, userdata, code, properties; paho 2: client, userdata, flags, code, properties.
        code = arguments[3] if _V2 else arguments[2]
        self._events.append(Disconnected(_number(code)))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, codes: Any, properties: Any = None) -> None:
        self._events.append(Subscribed(tuple(_number(code) for code in codes)))

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = str(message.topic)
        except UnicodeDecodeError:
            return  # no topic of this device
        self._events.append(Message(topic, bytes(message.payload)))

    def _on_publish_one(self, client: Any, userdata: Any, mid: int) -> None:
        puback = client.puback
        if puback is None or puback[0] != mid:
            raise PahoError("paho-mqtt did not tell the reason code of a PUBACK")
        self._events.append(Acknowledged(mid, puback[1]))

    def _on_publish_two(self, client: Any, userdata: Any, mid: int, code: Any, properties: Any) -> None:
        self._events.append(Acknowledged(mid, _number(code)))
