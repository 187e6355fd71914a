import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HexFormat;
import java.util.List;
import java.util.Set;
import javax.net.ssl.SSLSocket;

/**
 * A SPIFFE workload on java-spiffe: takes what the Workload API gives it and prints one JSON object.
 *
 * <pre>
 * story               an X.509-SVID and one rotation of it, and a JWT-SVID, validated here and by the agent
 * call HOST PORT ID   one mTLS call through java-spiffe's provider to a server that must prove to be ID
 * </pre>
 *
 * Certificates are printed in hex of their DER, leaf first. The socket is SPIFFE_ENDPOINT_SOCKET; any error ends it
 * with status 1 and the error on stderr.
 */
public final class JavaWorkload {
    private static final String AUDIENCE = "billing";
    private static final long ROTATION_MILLIS = 60_000;

    public static void main(String[] words) {
        try {
            if (words.length == 1 && words[0].equals("story")) {
                System.out.println("{\"x509\": " + certificates() + ", \"jwt\": " + tokens() + "}");
            } else if (words.length == 4 && words[0].equals("call")) {
                System.out.println(call(words[1], Integer.parseInt(words[2]), SpiffeId.parse(words[3])));
            } else {
                throw new IllegalArgumentException("unknown command");
            }
            System.exit(0); // grpc keeps threads of its own
        } catch (Exception error) {
            error.printStackTrace();
            System.exit(1);
        }
    }

    private static String certificates() throws Exception {
        try (var source = DefaultX509Source.newSource()) {
            X509Svid first = source.getX509Svid();
            X509Svid second = first;
            // The source offers no event for an update.
            long end = System.currentTimeMillis() + ROTATION_MILLIS;
            while (second.getLeaf().equals(first.getLeaf())) {
                if (System.currentTimeMillis() > end) {
                    throw new IllegalStateException("no rotation");
                }
                Thread.sleep(100);
                second = source.getX509Svid();
            }
            X509SvidValidator.verifyChain(second.getChain(), source);
            var bundle = source.getBundleForTrustDomain(first.getSpiffeId().getTrustDomain());
            return "{\"spiffe_id\": " + text(first.getSpiffeId().toString())
                    + ", \"chains\": [" + hex(first.getChain()) + ", " + hex(second.getChain()) + "]"
                    + ", \"authorities\": " + hex(bundle.getX509Authorities())
                    + ", \"hint\": " + text(first.getHint()) + "}";
        }
    }

    private static String tokens() throws Exception {
        try (var source = DefaultJwtSource.newSource(); var client = DefaultWorkloadApiClient.newClient()) {
            JwtSvid fetched = source.fetchJwtSvid(AUDIENCE);
            JwtSvid here = JwtSvid.parseAndValidate(fetched.getToken(), source, Set.of(AUDIENCE));
            JwtSvid there = client.validateJwtSvid(fetched.getToken(), AUDIENCE);
            boolean refused = false;
            try {
                client.validateJwtSvid(fetched.getToken(), "elsewhere");
            } catch (Exception expected) {
                refused = true;
            }
            return "{\"spiffe_id\": " + text(here.getSpiffeId().toString())
                    + ", \"agent_says\": " + text(there.getSpiffeId().toString())
                    + ", \"audience\": [" + text(String.join(",", here.getAudience())) + "]"
                    + ", \"other_audience_refused\": " + refused + "}";
        }
    }

    private static String call(String host, int port, SpiffeId expected) throws Exception {
        try (var source = DefaultX509Source.newSource()) {
            var options = SslContextOptions.builder()
                    .x509Source(source)
                    .acceptedSpiffeIdsSupplier(() -> Set.of(expected))
                    .build();
            var factory = SpiffeSslContextFactory.getSslContext(options).getSocketFactory();
            try (var socket = (SSLSocket) factory.createSocket(host, port)) {
                socket.getOutputStream().write("hello\n".getBytes());
                var answer = new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine();
                return "{\"answer\": " + text(answer) + "}";
            }
        }
    }

    private static String hex(Collection<X509Certificate> certificates) throws Exception {
        List<String> made = new ArrayList<>();
        for (X509Certificate certificate : certificates) {
            made.add(text(HexFormat.of().formatHex(certificate.getEncoded())));
        }
        return "[" + String.join(", ", made) + "]";
    }

    /** What is printed here are IDs and hex: nothing in them needs an escape. */
    private static String text(String value) {
        return value == null ? "null" : "\"" + value + "\"";
    }
}
