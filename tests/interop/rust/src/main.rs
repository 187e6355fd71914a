//! A SPIFFE workload on the `spiffe` crate: takes what the Workload API gives it and prints one JSON object.
//!
//! It takes an X.509-SVID, waits for one rotation of it, and takes a JWT-SVID, which it validates itself and has the
//! agent validate. Certificates are printed in hex of their DER, leaf first. The socket is SPIFFE_ENDPOINT_SOCKET;
//! any error ends it with status 1 and the error on stderr.

use std::error::Error;
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::{BundleSource, JwtSource, JwtSvid, WorkloadApiClient, X509Source, X509Svid};
use tokio::time::timeout;

const AUDIENCE: &str = "billing";
const ROTATION: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let x509 = certificates().await?;
    let jwt = tokens().await?;
    println!("{}", json!({"x509": x509, "jwt": jwt}));
    Ok(())
}

async fn certificates() -> Result<Value, Box<dyn Error>> {
    let source = X509Source::new().await?;
    let mut updates = source.updated();
    let first = source.svid()?;
    let mut second = first.clone();
    while second.leaf().as_bytes() == first.leaf().as_bytes() {
        timeout(ROTATION, updates.changed()).await??;
        second = source.svid()?;
    }
    let domain = first.spiffe_id().trust_domain();
    let bundle = source.bundle_for_trust_domain(domain)?.ok_or("no X.509 bundle of the own trust domain")?;
    let told = json!({
        "spiffe_id": first.spiffe_id().to_string(),
        "chains": [chain(&first), chain(&second)],
        "authorities": bundle.authorities().iter().map(|one| hex(one.as_bytes())).collect::<Vec<_>>(),
        "hint": first.hint(),
    });
    source.shutdown().await;
    Ok(told)
}

async fn tokens() -> Result<Value, Box<dyn Error>> {
    let source = JwtSource::new().await?;
    let fetched = source.fetch_jwt_svid(&[AUDIENCE]).await?;
    let here = JwtSvid::parse_and_validate(fetched.token(), &source, &[AUDIENCE])?;
    let client = WorkloadApiClient::connect_env().await?;
    let there = client.validate_jwt_token(AUDIENCE, fetched.token()).await?;
    let elsewhere = client.validate_jwt_token("elsewhere", fetched.token()).await;
    let told = json!({
        "spiffe_id": here.spiffe_id().to_string(),
        "agent_says": there.spiffe_id().to_string(),
        "audience": here.audience(),
        "other_audience_refused": elsewhere.is_err(),
    });
    source.shutdown().await;
    Ok(told)
}

fn chain(svid: &X509Svid) -> Vec<String> {
    svid.cert_chain().iter().map(|one| hex(one.as_bytes())).collect()
}

fn hex(der: &[u8]) -> String {
    der.iter().map(|byte| format!("{byte:02x}")).collect()
}
