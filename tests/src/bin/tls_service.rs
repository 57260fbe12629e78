//! A TLS service on rustls with the library's ticketer: `tls_service PORT CERTIFICATE KEY`. Says who answered.

use std::error::Error;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: tls_service PORT CERTIFICATE KEY");
    let (port, certificate, key) = (next()?, next()?, next()?);
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_file(key)?,
            )?;
    config.ticketer = phalanx::tls::ticketer()?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = phalanx::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let worker = std::env::var("PHALANX_WORKER_ID").unwrap_or_else(|_| "alone".to_owned());
    println!("listening");
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            () = phalanx::draining() => return Ok(()),
        };
        let (acceptor, worker) = (acceptor.clone(), worker.clone());
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await? > 0 {}
            let reply = format!("HTTP/1.0 200 OK\r\nx-worker: {worker}\r\n\r\n");
            stream.write_all(reply.as_bytes()).await?;
            stream.shutdown().await
        });
    }
}
