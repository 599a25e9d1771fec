//! A tiny HTTP/1.1 server and client for downloads whose every byte is checked.
//!
//! `GET /<n>` gives `n` bytes of a pattern that depends on the position and on the server's seed.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    error::{During as _, Error, Result},
    listener::Listener,
    netns,
    site::Lab,
};

const CHUNK: usize = 64 * 1024;

/// A server at work on a host. Dropping it ends it.
#[derive(Debug)]
pub struct Server(Listener);

impl Server {
    /// Addresses of clients, in the order in which they connected.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        self.0.clients()
    }
}

/// A complete download with correct contents.
#[derive(Clone, Copy, Debug)]
pub struct Download {
    /// Bytes of the body.
    pub bytes: u64,
    /// From before connecting to the last byte.
    pub took: Duration,
}

/// The byte at `position` of the pattern of `seed`.
fn pattern(seed: u64, position: u64) -> u8 {
    let word = (position >> 3) ^ seed.rotate_left(17);
    let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).to_le_bytes()[(position & 7) as usize]
}

impl Lab {
    /// Serves on `port` of every address of `host`, those it gets later included, until dropped.
    ///
    /// # Errors
    /// If there is no such host, or the port is taken.
    pub fn http_server(&self, host: &str, port: u16, seed: u64) -> Result<Server> {
        Listener::open(self, host, port, move |stream| serve(stream, seed)).map(Server)
    }

    /// Downloads `bytes` from a [`Lab::http_server`] with the same seed, from `host`, and checks
    /// every byte.
    ///
    /// # Errors
    /// If it cannot connect, stalls for longer than `within`, ends early, or a byte differs.
    pub fn download(
        &self,
        host: &str,
        from: IpAddr,
        port: u16,
        seed: u64,
        bytes: u64,
        within: Duration,
    ) -> Result<Download> {
        netns::within(&self.namespace(host)?, || {
            let began = Instant::now();
            let to = SocketAddr::new(from, port);
            let stream = TcpStream::connect_timeout(&to, within)
                .during(|| format!("connecting from {host} to {to}"))?;
            fetch(stream, seed, bytes, within)
                .during(|| format!("downloading from {to} to {host}"))?;
            if began.elapsed() > within {
                return Err(Error::Timeout {
                    what: format!("a download of {bytes} bytes from {to} to {host}"),
                    within,
                    detail: String::new(),
                });
            }
            Ok(Download {
                bytes,
                took: began.elapsed(),
            })
        })
    }
}

fn serve(stream: &TcpStream, seed: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.by_ref().take(1024).read_line(&mut first)?;
    loop {
        let mut line = String::new();
        lines.by_ref().take(1024).read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
    }
    let wanted = first
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let mut out = stream;
    let Some(bytes) = wanted else {
        return out.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nContent-Type: \
         application/octet-stream\r\nConnection: close\r\n\r\n"
    )?;
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + CHUNK as u64);
        let chunk: Vec<u8> = (at..end).map(|p| pattern(seed, p)).collect();
        out.write_all(&chunk)?;
        at = end;
    }
    Ok(())
}

fn fetch(stream: TcpStream, seed: u64, bytes: u64, within: Duration) -> io::Result<()> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    write!(
        &stream,
        "GET /{bytes} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
    )?;
    let mut lines = BufReader::with_capacity(CHUNK, stream);
    let mut status = String::new();
    lines.read_line(&mut status)?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(bad(format!("answered {:?}", status.trim())));
    }
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut at = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = lines.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        for byte in buffer.get(..length).unwrap_or_default() {
            if *byte != pattern(seed, at) {
                return Err(bad(format!("byte {at} is wrong")));
            }
            at += 1;
        }
    }
    if at == bytes {
        Ok(())
    } else {
        Err(bad(format!("received {at} bytes instead of {bytes}")))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn over_loopback(seed: u64, expected: u64, asked: u64) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || serve(&listener.accept().unwrap().0, seed));
        let result = fetch(
            TcpStream::connect(to).unwrap(),
            expected,
            asked,
            Duration::from_secs(10),
        );
        let _ = server.join();
        result
    }

    #[test]
    fn a_download_is_checked_to_the_last_byte() {
        over_loopback(7, 7, 200_001).unwrap();
        over_loopback(7, 7, 0).unwrap();
    }

    #[test]
    fn another_servers_bytes_are_noticed() {
        let error = over_loopback(7, 8, 1000).unwrap_err();
        assert!(error.to_string().contains("is wrong"), "{error}");
    }
}
