//! A TCP service that sends a greeting, as ssh does, and then echoes; and connections to it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    error::{During as _, Result},
    listener::Listener,
    netns,
    site::Lab,
};

/// A running greeter on a host. Dropping it ends it; open connections continue.
#[derive(Debug)]
pub struct Greeter(Listener);

impl Greeter {
    /// Addresses of clients, in the order in which they connected.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        self.0.clients()
    }
}

impl Lab {
    /// Greets each client of `port` of `host` with a line, and then echoes what it receives,
    /// until dropped.
    ///
    /// # Errors
    /// If there is no such host, or the port is taken.
    pub fn greeter(&self, host: &str, port: u16, line: &str) -> Result<Greeter> {
        let line = format!("{line}\r\n");
        Listener::open(self, host, port, move |stream| echo(stream, &line)).map(Greeter)
    }

    /// Connects from `host`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) with the stack's error; of kind
    /// [`io::ErrorKind::TimedOut`] if no answer came `within` the time.
    pub fn connect(&self, host: &str, to: SocketAddr, within: Duration) -> Result<TcpStream> {
        netns::within(&self.namespace(host)?, || {
            TcpStream::connect_timeout(&to, within)
                .during(|| format!("connecting from {host} to {to}"))
        })
    }

    /// The line that a [`Lab::greeter`] greets `host` with.
    ///
    /// # Errors
    /// As [`Lab::connect`], and if no line comes `within` the time.
    pub fn greeting(&self, host: &str, to: SocketAddr, within: Duration) -> Result<String> {
        let stream = self.connect(host, to, within)?;
        let read = || -> io::Result<String> {
            stream.set_read_timeout(Some(within))?;
            let mut line = String::new();
            BufReader::new(&stream).take(1024).read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        };
        read().during(|| format!("waiting on {host} for the greeting of {to}"))
    }
}

fn echo(mut stream: &TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes())?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_greeter_greets_and_sends_back_what_it_gets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || echo(&listener.accept().unwrap().0, "hello\r\n"));
        client.write_all(b"and back").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "hello\r\nand back");
        server.join().unwrap().unwrap();
    }
}
