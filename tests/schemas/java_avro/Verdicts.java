import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.apache.avro.AvroRuntimeException;
import org.apache.avro.Schema;
import org.apache.avro.SchemaCompatibility;

/** Reads lines of reader, tab, writer; answers each with INVALID, AMBIGUOUS, or the kinds found ("-" for none). */
public class Verdicts {
  public static void main(String[] arguments) throws Exception {
    var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    var answers = new StringBuilder();
    for (String line; (line = lines.readLine()) != null; ) {
      String[] parts = line.split("\t");
      answers.append(verdict(parts[0], parts[1])).append('\n');
    }
    System.out.print(answers);
  }

  private static String verdict(String readerText, String writerText) {
    Schema reader;
    Schema writer;
    try {
      reader = new Schema.Parser().parse(readerText);
      writer = new Schema.Parser().parse(writerText);
    } catch (RuntimeException invalid) {
      return "INVALID";
    }
    try {
      var result = SchemaCompatibility.checkReaderWriterCompatibility(reader, writer).getResult();
      var kinds = new StringBuilder();
      for (var found : result.getIncompatibilities()) {
        kinds.append(kinds.length() == 0 ? "" : ",").append(found.getType());
      }
      return kinds.length() == 0 ? "-" : kinds.toString();
    } catch (AvroRuntimeException ambiguous) {
      return "AMBIGUOUS";
    }
  }
}
