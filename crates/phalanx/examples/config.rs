//! One program that clusters itself, and whose primary alone reads the configuration.
//!
//! ```sh
//! GREETING=hello WORKERS=2 cargo run -p phalanx --example config
//! ```

use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
struct Config {
    greeting: String,
}

fn main() -> phalanx::Result<()> {
    let config = Config { greeting: std::env::var("GREETING").unwrap_or_else(|_| "hello".to_owned()) };
    let workers = std::env::var("WORKERS").unwrap_or_else(|_| "auto".to_owned());
    phalanx::Cluster::builder().name("greeter").workers(&*workers).config(&config).threads(2).run(
        |worker| async move {
            let Config { greeting } = worker.config()?;
            println!("{greeting} from worker {} of {}", worker.id(), worker.cluster().unwrap_or("nobody"));
            worker.send(&(greeting, worker.generation(), worker.cluster())).await?;
            if std::env::var_os("ONCE").is_none() {
                worker.draining().await;
            }
            Ok(())
        },
    )
}
