//! Reads the header in which a gateway names the client of a connection; its format is
//! [`gateway_client::proxy_header`].

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use gateway_client::proxy_header::{HEAD_BYTES, MAX_BODY_BYTES, NoHeader, body_length, client};
use nix::poll::PollFlags;

use super::{close_reason::CloseReason, link::HandshakeError, thread_control::ThreadControl};

/// Reads the header, and no byte behind it.
pub(super) fn read(
    mut socket: &TcpStream,
    control: &ThreadControl,
    deadline: Instant,
) -> Result<Result<Option<SocketAddr>, NoHeader>, HandshakeError> {
    let mut read_exact = |mut buffer: &mut [u8]| {
        while !buffer.is_empty() {
            if control.stop_reason().is_some() {
                return Err(HandshakeError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(HandshakeError::Slow);
            }
            match socket.read(buffer) {
                Ok(0) => return Err(CloseReason::Cut.into()),
                Ok(bytes) => buffer = &mut buffer[bytes..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    control.wait(socket, PollFlags::POLLIN, Some(deadline));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(CloseReason::Lost(error).into()),
            }
        }
        Ok(())
    };
    let mut head = [0; HEAD_BYTES];
    read_exact(&mut head)?;
    let length = match body_length(&head) {
        Ok(length) => length,
        Err(no) => return Ok(Err(no)),
    };
    let mut body = [0; MAX_BODY_BYTES];
    read_exact(&mut body[..length])?;
    Ok(client(&head, &body[..length]))
}
